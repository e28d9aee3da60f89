"""The flags that a printed command needs besides the job's name, so that it refers to the same job in every shell."""

import dataclasses
import os
import shlex


@dataclasses.dataclass(frozen=True)
class ConfigFlags:
    """Flags of a command, each with a leading space; ``str`` joins them. A flag that equals the default is left out.

    namespace: --namespace, for objects in the job's namespace. cluster: --context and --kubeconfig.
    """

    namespace: str = ""
    cluster: str = ""

    def __str__(self) -> str:
        return self.namespace + self.cluster


NO_FLAGS = ConfigFlags()


def build_config_flags(
    namespace: str, default_namespace: str, context: str | None = None, kubeconfig: str | os.PathLike[str] | None = None
) -> ConfigFlags:
    """Return the flags. default_namespace: the namespace of the context. context, kubeconfig: None if the user gave none."""
    return ConfigFlags(
        namespace=format_flag("--namespace", namespace if namespace != default_namespace else None),
        cluster=format_flag("--context", context) + format_flag("--kubeconfig", kubeconfig),
    )


def format_flag(name: str, value: str | os.PathLike[str] | None) -> str:
    """Return the flag quoted for a shell, with a leading space; empty for None."""
    return f" {name} {shlex.quote(os.fspath(value))}" if value is not None else ""
