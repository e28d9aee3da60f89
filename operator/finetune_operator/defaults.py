"""The operator defaults for all jobs. The chart writes them to a file. A job can override some of them."""

import pathlib
from collections.abc import Sequence
from typing import Any

import pydantic
import yaml
from pydantic import Field

from finetune_api.model import Model
from finetune_api.resource import describe_errors
from finetune_api.spec import PodSecurity, Toleration
from finetune_api.spec.common import LocalObjectReference


class Proxy(Model):
    """The proxy for connections out of the cluster, as in the usual environment variables.

    secret_name: a Secret in each namespace of jobs, with the names of the three other fields as keys. It replaces these fields.
    """

    secret_name: str | None = None
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None


class NetworkPolicy(Model):
    """Isolation of the pods of each job. operator_peer, metrics_from: NetworkPolicyPeers that may reach the telemetry port."""

    enabled: bool = False
    operator_peer: dict[str, Any] | None = None
    metrics_from: Sequence[dict[str, Any]] = ()


class OperatorDefaults(Model):
    """Values for jobs that do not set their own.

    ca_bundle: PEM of all certificate authorities that the pods trust. pod_groups: whether to create PodGroups for schedulers that
    place all pods of a job or none.
    """

    trainer_image: str | None = None
    image_pull_secrets: Sequence[LocalObjectReference] = ()
    tolerations: Sequence[Toleration] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    cache_claim: str | None = None
    hub_endpoint: str | None = None
    ca_bundle: str | None = None
    proxy: Proxy = Field(default_factory=Proxy)
    security_context: PodSecurity = Field(default_factory=lambda: PodSecurity(run_as_user=1000, run_as_group=1000, fs_group=1000))
    network_policy: NetworkPolicy = Field(default_factory=NetworkPolicy)
    pod_groups: bool = True


def read_defaults(path: pathlib.Path | None, trainer_image: str) -> OperatorDefaults:
    """Read the file. If it names no trainer image, use the given one. Raise ValueError with a message if the file is invalid."""
    if path is None:
        return OperatorDefaults(trainer_image=trainer_image)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        defaults = OperatorDefaults.model_validate(content, by_alias=True, by_name=False)
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: can't be read: {error}") from None
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: {describe_errors(error, OperatorDefaults)}") from None
    return defaults if defaults.trainer_image else defaults.model_copy(update={"trainer_image": trainer_image})
