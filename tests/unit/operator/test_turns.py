"""Which changes of the status are told as events."""

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy.turns import build_turns


def status(phase: str | None, reason: str | None = None, attempt: int | None = 1, message: str = "why") -> FineTuneJobStatus:
    return FineTuneJobStatus.model_validate({"phase": phase, "reason": reason, "attempt": attempt, "message": message})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (status(None, attempt=None), status("Pending", "PodsPending"), [("Normal", "Created", "Created the pods of attempt 1.")]),
        (status("Pending", "PodsPending"), status("Pending", "Unschedulable"), [("Warning", "Unschedulable", "why")]),
        (status("Pending", "Unschedulable"), status("Pending", "PodsPending"), []),
        (status("Initializing"), status("Running", "Training"), [("Normal", "Started", "Attempt 1 trains.")]),
        (status("Running", "Training"), status("Running", "Training", message="further"), []),
        (status("Running"), status("Publishing"), [("Normal", "Publishing", "why")]),
        (status(None, attempt=None), status("Pending", "NameTaken", attempt=None), [("Warning", "NameTaken", "why")]),
        (status("Queued", "Pending"), status("Queued", "Inadmissible"), [("Warning", "Inadmissible", "why")]),
        (status("Pending", "PodsPending"), status("Queued", "Pending"), []),
        (status("Running", "Training"), status("Queued", "Preempted"), [("Warning", "Evicted", "why")]),
        (
            status("Running", "Training"),
            status("Suspended", "Suspended"),
            [("Normal", "Suspended", "Stopped on request: the pods save a checkpoint and end.")],
        ),
        (status("Running"), status("Restarting", "PodLost"), [("Warning", "Restarting", "PodLost: why")]),
        (status("Running"), status("Failed", "DataError"), [("Warning", "Failed", "DataError: why")]),
        (status("Publishing"), status("Succeeded", "Completed"), [("Normal", "Succeeded", "why")]),
    ],
)
def test_turns_of_a_jobs_life(before: FineTuneJobStatus, after: FineTuneJobStatus, told: list[tuple[str, str, str]]) -> None:
    assert [(turn.type, turn.reason, turn.message) for turn in build_turns(before, after)] == told
