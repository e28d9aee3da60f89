"""Find the cluster and the namespace as kubectl does: in the kubeconfig, else by the pod's service account."""

import dataclasses
import os
import pathlib
from typing import Any

import yaml
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.config.incluster_config import SERVICE_TOKEN_FILENAME

from finetune_client.config_flags import format_flag
from finetune_client.errors import NotConfiguredError

_NAMESPACE_FILE = pathlib.Path(SERVICE_TOKEN_FILENAME).with_name("namespace")
_DEFAULT_NAMESPACE = "default"


@dataclasses.dataclass(frozen=True)
class Connection:
    """A client of the cluster, and the default namespace."""

    client: ApiClient
    namespace: str


def connect(kubeconfig: str | os.PathLike[str] | None = None, context: str | None = None) -> Connection:
    """Read the configuration, without a request to the cluster.

    kubeconfig: a path, or several separated by ":"; None means $KUBECONFIG, else ~/.kube/config. context: None means the
    current context of the kubeconfig. In a pod without a kubeconfig, the pod's service account is used.
    """
    # The HTTP client does not retry, because only the caller knows which requests may be repeated.
    configuration = Configuration(retries=False)
    given = os.fspath(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG")
    file = given or os.path.expanduser("~/.kube/config")  # noqa: PTH111 - the string may hold several paths
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    if in_pod and not given and context is None and not pathlib.Path(file).exists():
        return _connect_in_pod(configuration)
    try:
        # Refreshed tokens stay in memory, because the kubeconfig belongs to kubectl.
        config.load_kube_config(file, context, configuration, persist_config=False)  # type: ignore[no-untyped-call]
        contexts, current = config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
    except (config.ConfigException, yaml.YAMLError, OSError, KeyError, TypeError, AttributeError) as error:
        raise NotConfiguredError(_describe(file, context, error, format_flag("--kubeconfig", kubeconfig))) from error
    by_name = {item["name"]: item for item in contexts}
    selected: dict[str, Any] = by_name[context] if context is not None else current
    return Connection(ApiClient(configuration), selected["context"].get("namespace") or _DEFAULT_NAMESPACE)


def _connect_in_pod(configuration: Configuration) -> Connection:
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise NotConfiguredError(
            "this pod has no service account token for the cluster: set automountServiceAccountToken, or provide a kubeconfig"
        ) from error
    return Connection(ApiClient(configuration), namespace or _DEFAULT_NAMESPACE)


def _describe(file: str, context: str | None, error: Exception, flag: str) -> str:
    if not any(pathlib.Path(part).expanduser().exists() for part in file.split(os.pathsep)):
        return f"there is no kubeconfig at {file}: set KUBECONFIG or use --kubeconfig"
    if context is not None and context in str(error):
        return f"the kubeconfig {file} has no context {context}: `kubectl config get-contexts{flag}` lists its contexts"
    return f"the kubeconfig {file} can't be used: {' '.join(str(error).split())}"
