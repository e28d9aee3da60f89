"""The plan of an attempt, which is the only input of the builders, and the metadata that all children share."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_operator.defaults import OperatorDefaults
from finetune_operator.observed import Manifest

# In place of the uid of the attempt's Job, which the API server generates. The creation of the ConfigMap puts the uid in.
UID_OF_JOB = "uid of the Job"


@dataclasses.dataclass(frozen=True)
class QueuePlace:
    """The Job that holds the place in the queue. template: its pod template, to which Kueue adds where the pods may run."""

    uid: str
    template: Manifest = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One attempt at a FineTuneJob.

    nodes: the number of pods; spec.distributed.minNodes allows fewer than the spec asks for. image: the trainer image.
    restarts_left: how many in-place restarts are still allowed. resolved: the commits that earlier attempts resolved revisions
    to. adopted: an earlier FineTuneJob of this name left the output claim, so the pods may use only a finished model in it.
    rendezvous_key: with it the pods sign what they exchange. The text here stands in rendered manifests; each attempt that is
    created gets a random one.
    kueue_labels, kueue_annotations: those of the FineTuneJob. generation: its version of the spec. queue: its place in the queue,
    if it has one. scheduling_groups: whether Kubernetes itself places pods in groups, and no queue decides about them.
    avoided_nodes: nodes on which a GPU failed.
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
    defaults: OperatorDefaults = dataclasses.field(default_factory=OperatorDefaults)
    adopted: bool = False
    rendezvous_key: str = "random for each attempt"
    kueue_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kueue_annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    generation: int = 1
    queue: QueuePlace | None = None
    scheduling_groups: bool = False
    avoided_nodes: Sequence[str] = ()

    @property
    def attempt_name(self) -> str:
        """Name of the attempt's Job."""
        return names.attempt_name(self.name, self.attempt)

    @property
    def unique_name(self) -> str:
        """Name of the attempt's ConfigMap, and of its PodGroup.

        The uid avoids a conflict with an earlier job of this name that is not yet deleted. With the generation, no pod can read
        the file of an earlier version of the spec.
        """
        return f"{self.attempt_name}-{self.uid[:8].lower()}-{self.generation}"

    @property
    def ca_bundle_name(self) -> str | None:
        """Name of the ConfigMap with the CA certificates, if there are any. It follows from the content, which never changes."""
        bundle = self.defaults.ca_bundle
        return f"{names.CA_BUNDLE_PREFIX}{hashlib.sha256(bundle.encode()).hexdigest()[:12]}" if bundle else None

    @property
    def service_domain(self) -> str:
        """The domain of the pods' host names. The pods' resolver appends the cluster domain."""
        return f"{names.service_name(self.name)}.{self.namespace}.svc"

    @property
    def cache_claim(self) -> str | None:
        """The claim of the cache that jobs share, if there is one."""
        return self.spec.cache.claim_name if self.spec.cache is not None else self.defaults.cache_claim


def build_labels(plan: Plan) -> dict[str, str]:
    """Return the labels of every child."""
    return {names.LABEL_JOB: plan.name, names.LABEL_MANAGED_BY: names.MANAGED_BY}


def build_attempt_labels(plan: Plan) -> dict[str, str]:
    """Return the labels of the children of one attempt."""
    return {**build_labels(plan), names.LABEL_ATTEMPT: str(plan.attempt)}


def build_metadata(plan: Plan, name: str, labels: dict[str, str]) -> Manifest:
    """Return the metadata of a child that is deleted with its FineTuneJob."""
    return {
        "name": name,
        "namespace": plan.namespace,
        "labels": labels,
        "ownerReferences": [build_owner(names.API_VERSION, names.KIND, plan.name, plan.uid)],
    }


def build_owner(api_version: str, kind: str, name: str, uid: str) -> Manifest:
    """Return a reference to the controller of an object.

    blockOwnerDeletion would need the right to update finalizers of the owner, and hold up its deletion.
    """
    reference = {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid}
    return {**reference, "controller": True, "blockOwnerDeletion": False}
