"""What a command that is printed needs besides a job's name, so that it means the same job wherever it is pasted."""

import dataclasses
import os
import shlex


@dataclasses.dataclass(frozen=True)
class Place:
    """Options of a command, each with a space before it; as text both together. Empty for what a command finds by itself.

    namespace: for whatever is in the job's namespace. cluster: the context and the kubeconfig.
    """

    namespace: str = ""
    cluster: str = ""

    def __str__(self) -> str:
        return self.namespace + self.cluster


HERE = Place()


def build_place(
    namespace: str, own_namespace: str, context: str | None = None, kubeconfig: str | os.PathLike[str] | None = None
) -> Place:
    """own_namespace: that of the context, which a command takes by itself. context, kubeconfig: None where none was given."""
    return Place(
        namespace=format_option("--namespace", namespace if namespace != own_namespace else None),
        cluster=format_option("--context", context) + format_option("--kubeconfig", kubeconfig),
    )


def format_option(name: str, value: str | os.PathLike[str] | None) -> str:
    """As a shell wants it, with a space before it; empty for None."""
    return f" {name} {shlex.quote(os.fspath(value))}" if value is not None else ""
