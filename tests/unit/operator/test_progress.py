"""Merging the report of a pod into the status."""

import pytest

from finetune_api.durations import format_duration
from finetune_api.findings import FindingType
from finetune_api.status import (
    CheckpointStatus,
    Entity,
    Evaluation,
    Finding,
    FineTuneJobStatus,
    Guess,
    Progress,
    Resolved,
    SampleAnswer,
)
from finetune_api.wire import Report
from finetune_operator.policy.progress import merge_report, round_significant
from unit.operator.builders import NOW


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.4, "0s"),
        (45, "45s"),
        (59.6, "1m00s"),
        (130, "2m10s"),
        (3600, "1h00m"),
        (3900, "1h05m"),
        (86_400, "1d0h"),
        (273_600, "3d4h"),
    ],
)
def test_durations_are_formatted_like_ages_in_kubectl(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "digits", "rounded"),
    [
        (0.0, 4, 0.0),
        (2.345678, 4, 2.346),
        (1.23456e-5, 4, 1.235e-5),
        (12345.6, 3, 12300.0),
        (-0.99999, 3, -1.0),
        (1.79e308, 1, 1.79e308),
    ],
)
def test_numbers_keep_their_significant_digits(value: float, digits: int, rounded: float) -> None:
    assert round_significant(value, digits) == rounded


def test_progress_is_rounded_and_readable() -> None:
    report = Report(
        attempt=1,
        phase="Running",
        step=111,
        total_steps=300,
        epoch=0.37037,
        loss=0.412345,
        learning_rate=1.98765e-5,
        samples_per_second=123.456,
        remaining_seconds=130.4,
        last_step_time="2026-01-02T03:04:00.123+00:00",
    )
    assert merge_report(FineTuneJobStatus(), report, NOW).progress == Progress(
        step=111,
        total_steps=300,
        percent=37,
        display="37%",
        epoch=0.37,
        loss=0.4123,
        learning_rate=1.988e-5,
        samples_per_second=123.0,
        last_step_time="2026-01-02T03:04:00Z",
        remaining="2m10s",
        estimated_completion_time="2026-01-02T03:06:15Z",
    )


@pytest.mark.parametrize(
    "report",
    [
        Report(attempt=1, phase="Running", step=2**60, total_steps=2**61),
        Report(attempt=1, phase="Running", step=-1, total_steps=10),
        Report(attempt=1, phase="Initializing"),
    ],
)
def test_implausible_reports_are_ignored(report: Report) -> None:
    before = FineTuneJobStatus(progress=Progress(step=5, total_steps=10))
    assert merge_report(before, report, NOW) == before


def test_a_later_attempt_shows_the_old_progress_until_it_has_resumed() -> None:
    before = FineTuneJobStatus(progress=Progress(step=200, total_steps=300, percent=66, display="66%"))
    loading = Report(attempt=2, phase="Initializing", step=0, total_steps=300)
    assert merge_report(before, loading, NOW).progress == before.progress
    resumed = Report(attempt=2, phase="Running", step=150, total_steps=300)
    progress = merge_report(before, resumed, NOW).progress
    assert progress is not None
    assert progress.display == "50%"


def test_an_invalid_time_is_not_written_to_the_status() -> None:
    report = Report(
        attempt=1,
        phase="Running",
        step=1,
        total_steps=2,
        last_step_time="yesterday",
        checkpoint=CheckpointStatus(step=1, time="2026-01-02"),
        remaining_seconds=1e300,
    )
    status = merge_report(FineTuneJobStatus(), report, NOW)
    assert status.checkpoint is None
    assert status.progress is not None
    assert status.progress.last_step_time is None
    assert status.progress.remaining == "3650d0h"


def test_commits_stay_those_that_the_first_attempt_resolved() -> None:
    before = FineTuneJobStatus(resolved=Resolved(image="trainer:1", nodes=2, model_revision="old"))
    report = Report(
        attempt=2,
        phase="Running",
        resolved=Resolved(image="evil:1", nodes=9, model_revision="new", dataset_revisions=["d"], per_device_batch_size=4),
    )
    assert merge_report(before, report, NOW).resolved == Resolved(
        image="trainer:1", nodes=2, model_revision="old", dataset_revisions=["d"], per_device_batch_size=4
    )


def test_an_evaluation_has_a_bounded_number_of_rounded_metrics() -> None:
    metrics = {"accuracy": 0.98123456, **{f"m{index:03}": 1.0 for index in range(200)}}
    status = merge_report(
        FineTuneJobStatus(), Report(attempt=1, phase="Running", evaluation=Evaluation(step=1, metrics=metrics)), NOW
    )
    assert status.evaluation is not None
    assert status.evaluation.metrics["accuracy"] == 0.9812
    assert len(status.evaluation.metrics) == 64


def test_answers_to_samples_are_bounded_for_every_task() -> None:
    long = "x" * 1000
    answer_of_a_pod = SampleAnswer(
        text=long,
        entities=[Entity(text=long, label=long)] * 100,
        guesses=[Guess(token=long, score=0.123456)] * 100,
        answer=long,
    )
    status = merge_report(FineTuneJobStatus(), Report(attempt=1, phase="Running", samples=[answer_of_a_pod] * 100), NOW)
    assert status.samples is not None
    assert len(status.samples) == 16
    assert status.samples[0] == SampleAnswer(
        text=long[:200],
        entities=[Entity(text=long[:200], label=long[:200])] * 32,
        guesses=[Guess(token=long[:200], score=0.1235)] * 5,
        answer=long[:400],
    )


def finding(kind: str, message: str = "m") -> Finding:
    return Finding(type=kind, message=message)


def test_findings_are_those_of_the_last_report_that_has_any_say_about_them() -> None:
    raised = Report(attempt=1, phase="Running", findings=[finding("RowsCut")])
    status = merge_report(FineTuneJobStatus(), raised, NOW)
    assert status.findings == [finding("RowsCut")]
    loading = Report(attempt=2, phase="Initializing")
    assert merge_report(status, loading, NOW).findings == [finding("RowsCut")], "the data is not read yet"
    assert merge_report(status, raised.model_copy(update={"findings": []}), NOW).findings is None


def test_findings_of_a_pod_are_few_known_and_short() -> None:
    kinds = [*FindingType]
    reported = [finding("Unheard"), finding("RowsCut"), *(finding(kind, "m" * 2000) for kind in kinds)]
    status = merge_report(FineTuneJobStatus(), Report(attempt=1, phase="Running", findings=reported), NOW)
    assert status.findings is not None
    assert [item.type for item in status.findings] == ["RowsCut", *(kind for kind in kinds if kind != "RowsCut")][:5]
    assert max(len(item.message) for item in status.findings) == 500


def test_the_constant_answer_is_rounded_like_the_metrics_beside_it() -> None:
    evaluation = Evaluation(step=1, metrics={"loss": 0.123456}, baseline={"loss": 1.609437})
    status = merge_report(FineTuneJobStatus(), Report(attempt=1, phase="Running", evaluation=evaluation), NOW)
    assert status.evaluation == Evaluation(step=1, metrics={"loss": 0.1235}, baseline={"loss": 1.609})
