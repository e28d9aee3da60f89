"""``spec.pod.affinity``: the affinity of a pod, with every field of Kubernetes. So a wrong name is refused, not ignored."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.model import Model
from finetune_api.spec.common import Name, ObjectName

# The API server limits none of these lists. The limits keep a job small enough to be copied to all of its pods.
_Values = Annotated[Sequence[Annotated[str, Field(max_length=253)]], Field(max_length=512)]
_Keys = Annotated[Sequence[Name], Field(max_length=16)]
_Weight = Annotated[int, Field(ge=1, le=100)]


class NodeRequirement(Model):
    """A condition for a label, or for a field, of a node."""

    key: Name = Field(description="Label of the node.", examples=["nvidia.com/gpu.product"])
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(description="How the values are compared.")
    values: _Values | None = Field(
        default=None, description="Values: for In and NotIn at least one, for Gt and Lt one number, else none."
    )


class NodeTerm(Model):
    """Conditions that a node must all meet."""

    match_expressions: Annotated[Sequence[NodeRequirement], Field(max_length=32)] | None = Field(
        default=None, description="Conditions for the labels of a node."
    )
    match_fields: Annotated[Sequence[NodeRequirement], Field(max_length=8)] | None = Field(
        default=None, description="Conditions for the fields of a node. Kubernetes knows metadata.name."
    )


class RequiredNodes(Model):
    """The nodes on which a pod may run."""

    node_selector_terms: Annotated[Sequence[NodeTerm], Field(min_length=1, max_length=32)] = Field(
        description="Alternatives: a node must match one of them."
    )


class PreferredNodes(Model):
    """Nodes that the scheduler prefers."""

    weight: _Weight = Field(description="Weight of this preference.", examples=[50])
    preference: NodeTerm = Field(description="Conditions that a node must meet.")


class NodeAffinity(Model):
    """The nodes on which the pods run."""

    required_during_scheduling_ignored_during_execution: RequiredNodes | None = Field(
        default=None, description="Nodes on which the pods may run."
    )
    preferred_during_scheduling_ignored_during_execution: Annotated[Sequence[PreferredNodes], Field(max_length=32)] | None = (
        Field(default=None, description="Nodes that the scheduler prefers.")
    )


class LabelRequirement(Model):
    """A condition for a label."""

    key: Name = Field(description="Label.", examples=["team"])
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How the values are compared.")
    values: _Values | None = Field(default=None, description="Values: for In and NotIn at least one, else none.")


class LabelSelector(Model):
    """Conditions for labels, which must all be met. Without a condition, it selects everything."""

    match_labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] | None = Field(
        default=None, description="Labels with their values."
    )
    match_expressions: Annotated[Sequence[LabelRequirement], Field(max_length=32)] | None = Field(
        default=None, description="Conditions for labels."
    )


class PodTerm(Model):
    """Which other pods, and how near."""

    label_selector: LabelSelector | None = Field(default=None, description="The other pods. If left out: none.")
    namespaces: Annotated[Sequence[ObjectName], Field(max_length=64)] | None = Field(
        default=None, description="Namespaces of the other pods. If left out: that of the job."
    )
    namespace_selector: LabelSelector | None = Field(
        default=None, description="Labels of the namespaces of the other pods. An empty selector means all."
    )
    topology_key: Name = Field(
        description="Label of the nodes whose value names the domain.", examples=["topology.kubernetes.io/zone"]
    )
    match_label_keys: _Keys | None = Field(
        default=None, description="Labels whose values the other pods share with the pods of the job."
    )
    mismatch_label_keys: _Keys | None = Field(
        default=None, description="Labels whose values the other pods do not share with the pods of the job."
    )


class PreferredPods(Model):
    """Pods near which, or far from which, the scheduler prefers to place a pod."""

    weight: _Weight = Field(description="Weight of this preference.", examples=[50])
    pod_affinity_term: PodTerm = Field(description="Which other pods, and how near.")


class PodAffinity(Model):
    """Other pods, by which the nodes are chosen."""

    required_during_scheduling_ignored_during_execution: Annotated[Sequence[PodTerm], Field(max_length=32)] | None = Field(
        default=None, description="Conditions that a node must all meet."
    )
    preferred_during_scheduling_ignored_during_execution: Annotated[Sequence[PreferredPods], Field(max_length=32)] | None = Field(
        default=None, description="Conditions that the scheduler prefers to meet."
    )


class Affinity(Model):
    """Where the pods run, as in a pod."""

    node_affinity: NodeAffinity | None = Field(default=None, description="Nodes on which the pods run.")
    pod_affinity: PodAffinity | None = Field(default=None, description="Other pods near which the pods run.")
    pod_anti_affinity: PodAffinity | None = Field(default=None, description="Other pods far from which the pods run.")
