"""The operator's metrics are those that the contract declares, and end with their jobs."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api.metrics import OPERATOR_METRICS
from finetune_api.status import FineTuneJobStatus, Progress, Restarts
from finetune_operator.metrics import Metrics
from finetune_operator.observed import Key
from unit.operator.builders import build_record

ENDED = FineTuneJobStatus(
    phase="Succeeded",
    restarts=Restarts(failures=2),
    progress=Progress(step=3, loss=0.25),
    start_time="2026-01-02T03:04:05Z",
    completion_time="2026-01-02T03:05:05Z",
)


def test_every_declared_metric_is_there_with_its_type_help_and_labels() -> None:
    registry = CollectorRegistry()
    Metrics(registry).remember(build_record(ENDED))
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    for metric in OPERATOR_METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                assert set(sample.labels) - {"le"} == set(metric.labels)


def test_a_jobs_series_say_what_its_status_says_and_end_with_it() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.remember(build_record(ENDED))
    job = {"namespace": "team", "finetunejob": "news"}
    assert registry.get_sample_value("finetune_job_phase", {**job, "phase": "Succeeded"}) == 1
    assert registry.get_sample_value("finetune_job_phase", {**job, "phase": "Running"}) == 0
    assert registry.get_sample_value("finetune_job_restarts_total", job) == 2
    assert registry.get_sample_value("finetune_job_final_loss", job) == 0.25
    start = registry.get_sample_value("finetune_job_start_timestamp_seconds", job)
    assert registry.get_sample_value("finetune_job_completion_timestamp_seconds", job) == (start or 0) + 60
    metrics.keep_only([Key("team", "other")])
    assert 'finetunejob="news"' not in generate_latest(registry).decode()
