"""What another version wrote: unknown fields are ignored, and everything else is kept."""

from typing import Any

import pydantic
import pytest

from finetune_api.model import parse_known
from finetune_api.reasons import FineTuneError
from finetune_api.resource import parse_spec, read_spec
from finetune_api.status import Attempt, FineTuneJobStatus, Resolved, Restarts
from finetune_api.wire import Report

ATTEMPT = {"number": 1, "startTime": "2026-01-02T03:04:05Z", "nodes": 2}


def test_the_known_fields_of_a_block_are_kept() -> None:
    status = parse_known(
        FineTuneJobStatus,
        {
            "phase": "Running",
            "goodput": 0.9,
            "restarts": {"failures": 3, "elsewhere": 1},
            "resolved": {"image": "trainer:2", "seed": 7, "novel": {"a": 1}},
            "attempts": [ATTEMPT, {**ATTEMPT, "number": 2, "novel": True}],
        },
    )
    assert status.phase == "Running"
    assert status.restarts == Restarts(failures=3)
    assert status.resolved == Resolved(image="trainer:2")
    assert status.attempts is not None
    assert [attempt.number for attempt in status.attempts] == [1, 2]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Dreaming", "message": "m"}, FineTuneJobStatus(message="m")),
        (
            {"message": "m", "restarts": {"failures": "many", "preemptions": 1}},
            FineTuneJobStatus(message="m", restarts=Restarts(preemptions=1)),
        ),
        (
            {"message": "m", "attempts": [{"number": 1}, ATTEMPT]},
            FineTuneJobStatus(message="m", attempts=[Attempt.model_validate(ATTEMPT)]),
        ),
        ({"message": "m", "attempts": 3}, FineTuneJobStatus(message="m")),
        ({"message": "m", "progress": {"step": 3, "totalSteps": None}}, None),
    ],
)
def test_an_invalid_value_costs_no_more_than_the_block_that_needs_it(
    status: dict[str, Any], expected: FineTuneJobStatus | None
) -> None:
    before = repr(status)
    found = parse_known(FineTuneJobStatus, status)
    assert found.message == "m"
    assert expected is None or found == expected
    assert repr(status) == before, "the argument is not changed"


def test_an_object_without_its_own_required_field_is_an_error() -> None:
    with pytest.raises(pydantic.ValidationError):
        parse_known(Report, {"phase": "Running"})


def test_a_report_of_a_later_trainer_is_read() -> None:
    report = Report.read('{"attempt": 1, "phase": "Running", "novel": 1, "timing": {"steps": 2.0, "novel": 3}, "samples": []}')
    assert report is not None
    assert (report.phase, report.timing.steps if report.timing else None) == ("Running", 2.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"attempt": "1", "phase": "Running"}',
        '{"attempt": 1, "phase": "Dreaming"}',
        '{"attempt": 1, "phase": "Running", "loss": NaN}',
    ],
)
def test_what_is_no_report_is_refused(text: str) -> None:
    assert Report.read(text) is None


def test_a_spec_of_a_later_version_is_read_and_one_in_a_file_is_refused() -> None:
    spec = {
        "task": "text-classification",
        "model": {"hub": {"name": "a/b", "novel": 1}},
        "datasets": [{"hub": {"name": "c/d"}}],
        "novel": {},
    }
    assert read_spec(spec).task == "text-classification"
    with pytest.raises(FineTuneError, match=r"spec\.model\.hub\.novel: unknown field"):
        parse_spec(spec)
    with pytest.raises(FineTuneError, match=r"spec\.task"):
        read_spec({**spec, "task": "knitting"})
