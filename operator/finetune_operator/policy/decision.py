"""What a turn comes to."""

import dataclasses
from collections.abc import Sequence

from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, PodState

# The way of a life without trouble. A step forward on it may rest on what the watches told.
_FORWARD = ("Pending", "Initializing", "Running", "Publishing", "Succeeded")


@dataclasses.dataclass(frozen=True)
class Decision:
    """status: as it is to be once the rest was done. At most one of the others is to be done first.

    create_attempt: number of the attempt whose children are to be there. delete: a Job. force_delete: pods that nobody ends.
    delete_claim: uid of the output claim. delete_job: the FineTuneJob itself. again_seconds: when to look again without being
    asked. unsure: something that should be there was not seen.
    """

    status: FineTuneJobStatus
    create_attempt: int | None = None
    delete: ChildJob | None = None
    force_delete: Sequence[PodState] = ()
    delete_claim: str | None = None
    delete_job: bool = False
    again_seconds: float | None = None
    unsure: bool = False

    def needs_a_fresh_look(self, before: FineTuneJobStatus) -> bool:
        """Whether this must not rest on what the watches told: it creates, deletes, or takes the job off its way."""
        if (
            self.unsure
            or self.create_attempt is not None
            or self.delete is not None
            or self.force_delete
            or self.delete_claim is not None
            or self.delete_job
        ):
            return True
        if self.status.phase == before.phase:
            return False
        if before.phase is None and self.status.attempt is not None:
            return False  # its children were all created by this process
        if before.phase not in _FORWARD or self.status.phase not in _FORWARD:
            return True
        return _FORWARD.index(self.status.phase) < _FORWARD.index(before.phase)
