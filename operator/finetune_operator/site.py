"""What the people who run the cluster set for all jobs: the chart writes it into a file, jobs override what is theirs to say."""

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
    """The way out of the cluster, as the usual variables have it."""

    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None


class NetworkPolicy(Model):
    """Whether each gang is shut off. operator_peer, metrics_from: NetworkPolicyPeers that may reach the telemetry port."""

    enabled: bool = False
    operator_peer: dict[str, Any] | None = None
    metrics_from: Sequence[dict[str, Any]] = ()


class Site(Model):
    """Defaults for jobs that say nothing themselves. ca_bundle: PEM of every authority that the pods are to trust."""

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


def read_site(path: pathlib.Path | None, trainer_image: str) -> Site:
    """The site's file, with the trainer image where it names none; raise ValueError with a sentence if it can't be understood."""
    if path is None:
        return Site(trainer_image=trainer_image)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        site = Site.model_validate(content, by_alias=True, by_name=False)
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: can't be read: {error}") from None
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: {describe_errors(error)}") from None
    return site if site.trainer_image else site.model_copy(update={"trainer_image": trainer_image})
