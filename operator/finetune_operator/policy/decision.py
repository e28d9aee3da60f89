"""The decision of a reconcile."""

import dataclasses
from collections.abc import Sequence

from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, PodState

# The phases of a job without failures, in order. A step forward needs no live read.
_PHASE_ORDER = ("Pending", "Initializing", "Running", "Publishing", "Succeeded")


@dataclasses.dataclass(frozen=True)
class Decision:
    """The status to write, and at most one action before that.

    create_attempt: number of the attempt whose children to create.
    create_queue_job: whether to create the Job that holds the place in the queue.
    release_quota: that Job, to report that no pod uses its quota any more.
    delete_child_job: the Job to delete.
    force_delete: pods to delete by force.
    delete_claim: uid of the output claim to delete.
    delete_job: whether to delete the FineTuneJob itself.
    requeue_after_seconds: seconds until something is due: the next reconcile without an event.
    check_after_seconds: seconds until a check that corrects lost events. It may be later if there are many jobs.
    pods_missing: not all pods of an attempt that was in progress have started, so some may be gone.
    final_reports_missing: the attempt is complete, but the end of some pods was not observed.
    """

    status: FineTuneJobStatus
    create_attempt: int | None = None
    create_queue_job: bool = False
    release_quota: ChildJob | None = None
    delete_child_job: ChildJob | None = None
    force_delete: Sequence[PodState] = ()
    delete_claim: str | None = None
    delete_job: bool = False
    requeue_after_seconds: float | None = None
    check_after_seconds: float | None = None
    pods_missing: bool = False
    final_reports_missing: bool = False

    def requires_live_read(self, before: FineTuneJobStatus) -> bool:
        """Return whether this needs a live read: it creates or deletes something, or changes the phase in an unusual way."""
        if (
            self.final_reports_missing
            or self.pods_missing
            or self.create_attempt is not None
            or self.create_queue_job
            or self.release_quota is not None
            or self.delete_child_job is not None
            or self.force_delete
            or self.delete_claim is not None
            or self.delete_job
        ):
            return True
        if self.status.phase == before.phase:
            return before.phase in ("Queued", "Suspended") and self._says_something_new(before)
        if before.phase is None and self.status.attempt is not None:
            return False  # this process created all its children
        if before.phase not in _PHASE_ORDER or self.status.phase not in _PHASE_ORDER:
            return True
        return _PHASE_ORDER.index(self.status.phase) < _PHASE_ORDER.index(before.phase)

    def _says_something_new(self, before: FineTuneJobStatus) -> bool:
        """Return whether the status of an attempt that is over changes. The store can't show that its last pod is gone.

        The conditions follow from the rest.
        """
        is_over = before.attempts is not None and len(before.attempts) > 0 and before.attempts[-1].completion_time is not None
        return is_over and self.status.model_copy(update={"conditions": before.conditions}) != before
