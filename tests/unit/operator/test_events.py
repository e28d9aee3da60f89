"""Which changes of the status are recorded as events."""

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy.events import build_events


def status(phase: str | None, reason: str | None = None, attempt: int | None = 1, message: str = "why") -> FineTuneJobStatus:
    return FineTuneJobStatus.model_validate({"phase": phase, "reason": reason, "attempt": attempt, "message": message})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
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
def test_events_of_phase_changes(
    before: FineTuneJobStatus, after: FineTuneJobStatus, expected: list[tuple[str, str, str]]
) -> None:
    assert [(event.type, event.reason, event.message) for event in build_events(before, after)] == expected


def saved(step: int | None, total: int | None = 100, best: int | None = None, url: str | None = None) -> FineTuneJobStatus:
    return FineTuneJobStatus.model_validate(
        {
            "phase": "Running",
            "attempt": 1,
            "progress": {"step": step or 0, "totalSteps": total},
            "checkpoint": None if step is None else {"step": step, "time": "2026-01-02T03:04:05Z"},
            "best": None if best is None else {"step": best, "metrics": {"accuracy": 0.5}},
            "published": None if url is None else {"url": url, "commit": "0123456789abcdef"},
        }
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (saved(None), saved(2), ["The checkpoint of step 2 of 100 is complete."]),
        (saved(2), saved(24), []),
        (saved(24), saved(30), ["The checkpoint of step 30 of 100 is complete."]),
        (saved(30), saved(100), ["The checkpoint of step 100 of 100 is complete."]),
        (saved(30), saved(20), []),
        (saved(5, total=None), saved(50, total=None), []),
        (saved(2), saved(2, best=2), ["The model of step 2 is the best so far: accuracy 0.5."]),
        (saved(2, best=2), saved(2, best=2), []),
        (saved(2), saved(2, url="https://hub/a/b"), ["Pushed to https://hub/a/b, commit 0123456789ab."]),
    ],
)
def test_checkpoints_have_an_event_per_quarter_and_each_better_model_has_one(
    before: FineTuneJobStatus, after: FineTuneJobStatus, expected: list[str]
) -> None:
    assert [event.message for event in build_events(before, after)] == expected


def test_each_finding_is_a_warning_once_in_the_whole_job() -> None:
    def found(*kinds: str, attempt: int = 1) -> FineTuneJobStatus:
        findings = [{"type": kind, "message": f"about {kind}"} for kind in kinds]
        return FineTuneJobStatus.model_validate({"phase": "Running", "attempt": attempt, "findings": findings})

    [event] = build_events(found("RowsCut"), found("Overfitting", "RowsCut"))
    assert (event.type, event.reason, event.message) == ("Warning", "Overfitting", "about Overfitting")
    assert build_events(found("RowsCut"), found()) == []
    first, again = (build_events(found(attempt=attempt), found("RowsCut", attempt=attempt)) for attempt in (1, 2))
    assert first == again, "the name of an event follows from its content, so the second one is the first one"
