"""The one value that crosses the border to the builders, and the metadata that all children have in common."""

import dataclasses
from collections.abc import Mapping

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_operator.observed import Manifest
from finetune_operator.site import Site


@dataclasses.dataclass(frozen=True)
class Plan:
    """One attempt at a FineTuneJob.

    nodes: pods of the gang, of which spec.distributed.minNodes allows fewer. image: of the trainer. restarts_left: failures that
    may still be healed by restarts in place. resolved: what earlier attempts resolved names to. adopted: the output claim is of
    an earlier FineTuneJob of this name, so only a finished model in it may be used. kueue_labels, kueue_annotations: of the job.
    """

    namespace: str
    name: str
    uid: str
    attempt: int
    spec: FineTuneJobSpec
    nodes: int
    image: str
    restarts_left: int
    resolved: Resolved | None = None
    site: Site = dataclasses.field(default_factory=Site)
    adopted: bool = False
    kueue_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kueue_annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def attempt_name(self) -> str:
        """Name of the attempt's Job."""
        return names.attempt_name(self.name, self.attempt)

    @property
    def run_file_name(self) -> str:
        """Name of the attempt's ConfigMap: pods must never start with that of an earlier job of this name, not yet collected."""
        return f"{self.attempt_name}-{self.uid[:8].lower()}"

    @property
    def service_domain(self) -> str:
        """What the gang's host names end in. No cluster domain: the pods' resolver appends it, whatever it is."""
        return f"{names.service_name(self.name)}.{self.namespace}.svc"

    @property
    def cache_claim(self) -> str | None:
        """The claim that many jobs share, if there is one."""
        return self.spec.cache.claim_name if self.spec.cache is not None else self.site.cache_claim


def build_labels(plan: Plan) -> dict[str, str]:
    """Labels of every child."""
    return {names.LABEL_JOB: plan.name, names.LABEL_MANAGED_BY: names.MANAGED_BY}


def build_attempt_labels(plan: Plan) -> dict[str, str]:
    """Labels of the children of one attempt."""
    return {**build_labels(plan), names.LABEL_ATTEMPT: str(plan.attempt)}


def build_metadata(plan: Plan, name: str, labels: dict[str, str]) -> Manifest:
    """Metadata of a child that goes when its FineTuneJob goes.

    blockOwnerDeletion would need the right to update finalizers of the FineTuneJob, and hold up its deletion.
    """
    return {
        "name": name,
        "namespace": plan.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": plan.name,
                "uid": plan.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }
