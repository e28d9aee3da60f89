"""Builds the Job that holds the place of a FineTuneJob in Kueue's queue, and its quota, for all attempts."""

from finetune_api import names
from finetune_operator.manifests.job import build_job
from finetune_operator.manifests.plan import Plan, build_labels, build_metadata
from finetune_operator.observed import Manifest
from finetune_operator.requirements import requirements_digest


def build_queue_job(plan: Plan, default_queue: str | None = None) -> Manifest:
    """Return a Job without pods: Kueue suspends and resumes it as any other, but no controller of Kubernetes runs it.

    The Jobs of the attempts belong to it. So Kueue asks no quota for each of them, and a restart does not queue again.
    default_queue: its queue, if the FineTuneJob names none.
    """
    attempt = build_job(plan)
    labels = {names.LABEL_KUEUE_QUEUE: default_queue} if default_queue is not None else {}
    metadata = build_metadata(plan, names.queue_job_name(plan.name), {**plan.kueue_labels, **labels, **build_labels(plan)})
    digest = requirements_digest(plan.spec, plan.kueue_labels, plan.kueue_annotations)
    metadata["annotations"] = {**plan.kueue_annotations, names.ANNOTATION_REQUIREMENTS: digest}
    spec = {**attempt["spec"], "managedBy": names.MANAGER, "suspend": True}
    return {**attempt, "metadata": metadata, "spec": spec}
