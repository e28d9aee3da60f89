"""The operator exports exactly the declared metrics, few series per job, and no series of deleted jobs."""

from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api.findings import MAX_FINDINGS, FindingType
from finetune_api.metrics import JOB_METRICS, OPERATOR_METRICS, SERIES_RETENTION_SECONDS
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import (
    Attempt,
    CheckpointStatus,
    Condition,
    Failure,
    Finding,
    FineTuneJobStatus,
    Goodput,
    Phase,
    Progress,
    Restarts,
)
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key
from unit.operator.builders import NOW, ago, build_record, build_spec, spec_fields

JOB = {"namespace": "team", "finetunejob": "news"}
TIMES = {"productive": 30, "queued": 5, "starting": 20, "redone": 3}
PROGRESS = Progress(
    step=3,
    total_steps=12,
    loss=0.25,
    last_step_time="2026-01-02T03:04:00Z",
    estimated_completion_time="2026-01-02T03:14:05Z",
)
GOODPUT = Goodput.model_validate(
    {"ratio": 0.5, "since": "2026-01-02T03:03:05Z", **{f"{cause}_seconds": seconds for cause, seconds in TIMES.items()}}
)
RUNNING = FineTuneJobStatus(
    phase="Running",
    restarts=Restarts(failures=2, in_place=1, preemptions=7),
    progress=PROGRESS,
    goodput=GOODPUT,
    checkpoint=CheckpointStatus(step=2, time="2026-01-02T03:03:55Z"),
    start_time="2026-01-02T03:02:05Z",
    attempts=[Attempt(number=4, start_time="2026-01-02T03:03:05Z", nodes=3)],
    failure=Failure(reason="WorkerDied", message="gone"),
    findings=[Finding(type=kind, message="m") for kind in list(FindingType)[:MAX_FINDINGS]],
    conditions=[
        Condition(
            type="TrainingStalled",
            status="True",
            reason="NoProgress",
            message="m",
            last_transition_time="2026-01-02T03:03:05Z",
            observed_generation=1,
        )
    ],
)
ENDED = RUNNING.model_copy(update={"phase": "Failed", "completion_time": "2026-01-02T03:04:05Z"})


class Scraped:
    """Holds metrics, and returns what a scrape gets. seconds: the current Unix time."""

    def __init__(self) -> None:
        self.seconds = NOW.timestamp()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, now=lambda: self.seconds)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"finetune_job_{name}", {**JOB, **labels})

    def series(self) -> int:
        return sum(f'finetunejob="{JOB["finetunejob"]}"' in line for line in generate_latest(self.registry).decode().splitlines())


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_every_declared_metric_is_exported_with_its_type_help_and_labels(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(ENDED))
    scraped.metrics.count_request("get", "Job", 200)
    text = generate_latest(scraped.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for metric in OPERATOR_METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert [sample for sample in family.samples if not sample.name.endswith("_created")], metric.name
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                assert set(sample.labels) - {"le"} == set(metric.labels)
    ours = {name for name in families if name.startswith("finetune_") and not name.endswith("_created")}
    assert ours == {metric.name.removesuffix("_total") for metric in OPERATOR_METRICS}, "no other metric is exported"


def test_the_series_of_a_job_match_its_status(scraped: Scraped) -> None:
    spec = build_spec(distributed={"nodes": 4, "gpusPerNode": 8})
    scraped.metrics.track(build_record(RUNNING, spec))
    assert {phase: scraped.value("phase", phase=phase) for phase in get_args(Phase)} == {
        phase: float(phase == "Running") for phase in get_args(Phase)
    }
    assert [scraped.value("restarts_total", kind=kind) for kind in ("failures", "in_place", "preemptions")] == [2, 1, 7]
    assert scraped.value("gpus") == 24, "the nodes of the attempt count, not those of the spec"
    assert scraped.value("info", task="text-classification", model="a/b") == 1
    assert scraped.value("progress_ratio") == 0.25
    assert scraped.value("estimated_completion_timestamp_seconds") == NOW.timestamp() + 600
    assert scraped.value("last_step_timestamp_seconds") == NOW.timestamp() - 5
    assert scraped.value("checkpoint_timestamp_seconds") == NOW.timestamp() - 10
    assert scraped.value("phase_since_timestamp_seconds") == NOW.timestamp() - 60
    assert scraped.value("failure_info", reason="WorkerDied") == 1
    assert scraped.value("condition", condition="TrainingStalled") == 1
    assert scraped.value("condition", condition="Blocked") == 0
    assert scraped.value("goodput_ratio") == 0.5
    assert {cause: scraped.value("time_seconds", cause=cause) for cause in TIMES} == TIMES
    assert scraped.value("final_loss") is None
    assert scraped.value("completion_timestamp_seconds") is None


def test_a_finished_job_holds_no_gpu_and_has_a_final_loss(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(ENDED, build_spec(distributed={"nodes": 4, "gpusPerNode": 8})))
    assert (scraped.value("gpus"), scraped.value("final_loss")) == (0, 0.25)


def test_a_job_without_a_status_is_pending(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(FineTuneJobStatus(), FineTuneError(Reason.INVALID_SPEC, "spec.task: no such")))
    assert scraped.value("phase", phase="Pending") == 1
    assert scraped.value("info", task="", model="") == 1
    assert scraped.value("progress_ratio") is None


def test_a_claim_is_named_with_its_path(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(RUNNING, build_spec(model={"claim": {"claimName": "models", "path": "bert"}})))
    assert scraped.value("info", task="text-classification", model="models/bert") == 1


def test_a_job_has_at_most_fifty_series(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(ENDED))
    assert 30 < scraped.series() <= 50


def test_a_list_that_is_older_than_the_written_status_changes_nothing(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(RUNNING, version=8))
    scraped.metrics.track(build_record(FineTuneJobStatus(phase="Pending"), version=7))
    assert scraped.value("phase", phase="Running") == 1


def test_the_series_of_a_job_end_when_it_is_deleted(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(RUNNING))
    scraped.metrics.keep_only([Key("team", "other")])
    assert scraped.series() == 0


def test_the_series_of_a_finished_job_stay_for_an_hour(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(ENDED))
    scraped.seconds += SERIES_RETENTION_SECONDS
    assert scraped.value("failure_info", reason="WorkerDied") == 1
    scraped.seconds += 1
    assert scraped.series() == 0


def test_only_recently_finished_jobs_have_series(scraped: Scraped) -> None:
    def manifest(name: str, ended: float) -> dict[str, object]:
        at = ago(ended).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = {"name": name, "namespace": "team", "uid": "u", "resourceVersion": "9", "generation": 1}
        status = {"phase": "Succeeded", "completionTime": at}
        return {"metadata": {**metadata, "creationTimestamp": at}, "spec": spec_fields(), "status": status}

    scraped.metrics.track_finished(manifest("news", 60))
    scraped.metrics.track_finished(manifest("old", 2 * SERIES_RETENTION_SECONDS))
    text = generate_latest(scraped.registry).decode()
    assert 'finetunejob="news"' in text
    assert 'finetunejob="old"' not in text


def test_only_the_leader_exports_series_of_jobs(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(RUNNING))
    scraped.metrics.set_leading(False)
    assert scraped.series() == 0
    assert scraped.registry.get_sample_value("finetune_operator_leader") == 0
    scraped.metrics.set_leading(True)
    assert scraped.series() > 0
    assert {metric.labels[:2] for metric in JOB_METRICS} == {("namespace", "finetunejob")}


def test_each_finding_of_a_job_has_a_series(scraped: Scraped) -> None:
    scraped.metrics.track(build_record(ENDED))
    found = [scraped.value("finding", type=kind) for kind in FindingType]
    assert found == [1.0] * MAX_FINDINGS + [None] * (len(FindingType) - MAX_FINDINGS)
