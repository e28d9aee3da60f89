"""The pod's HTTP server, with values that a worker in another process has written."""

import json
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api import metrics as declared
from finetune_api.wire import Report
from finetune_trainer.pod.server import PushMetrics, build_registry, serve
from finetune_trainer.runtime.state import RunState

WORKER = """
from finetune_api import metrics
from finetune_trainer.monitoring.device_stats import Reading
from finetune_trainer.monitoring.metrics import WorkerMetrics

SET_SEPARATELY = (metrics.TRAINING_LOSS, metrics.TRAINING_EVAL_LOSS, metrics.TRAINING_MFU)

class DeviceStats:
    def read(self, tokens, seconds):
        return Reading(tokens / seconds / 1024, 0.01, 1, 2, 3)

for rank in (0, 1):
    worker = WorkerMetrics("team", "news", rank)
    worker.attach(DeviceStats())
    worker.set(metrics.TRAINING_LOSS, 0.25 + rank)
    worker.observe_step(0.5, now=1000.0)
    worker.add_tokens(128)
    worker.add_data_wait(0.125)
    worker.set_evaluation({"accuracy": 0.75, "loss": 0.5})
    worker.set_device_stats()
    worker.inc(metrics.TRAINING_SAMPLES, 32)
    worker.set(metrics.TRAINING_INFO, 1, task="text-classification", precision="bf16", processes="2")
    for metric in metrics.RANK_0_METRICS:
        if metric.kind == "gauge" and metric.labels == ("namespace", "finetunejob") and metric not in SET_SEPARATELY:
            worker.set(metric, 1)
"""


@pytest.fixture
def address(tmp_path: pathlib.Path) -> Iterator[str]:
    state = RunState(tmp_path)
    state.create()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(state.metrics_dir), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    registry = build_registry(state)
    pushes = PushMetrics(registry, "team", "news")
    pushes.succeeded(1.5)
    server = serve(0, registry, lambda: Report(attempt=3, phase="Running", step=7))
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own server
        return answer.read().decode()


def test_metrics_of_all_workers_and_of_the_launcher_are_served_as_declared(address: str) -> None:
    text = get(f"{address}/metrics")
    job = 'finetunejob="news",namespace="team"'
    assert f"{declared.TRAINING_LOSS.name}{{{job}}} 0.25" in text, "rank 0 reports for the job"
    for rank in (0, 1):
        assert f'{declared.TRAINING_TOKENS.name}{{{job},rank="{rank}"}} 128.0' in text
        assert f'{declared.STEP_DURATION.name}_count{{{job},rank="{rank}"}} 1.0' in text
        assert f'{declared.LAST_STEP.name}{{{job},rank="{rank}"}} 1000.0' in text
        assert f'{declared.DATA_WAIT.name}{{{job},rank="{rank}"}} 0.125' in text
        assert f'{declared.GPU_MEMORY_PEAK.name}{{{job},rank="{rank}"}} 2.0' in text
    assert f"{declared.HUB_PUSH_DURATION.name}{{{job}}} 1.5" in text
    assert f"{declared.HUB_PUSH_FAILURES.name}{{{job}}} 0.0" in text
    assert f"{declared.TRAINING_SAMPLES.name}{{{job}}} 32.0" in text
    assert f"{declared.TRAINING_MFU.name}{{{job}}} 0.25" in text
    assert f'{declared.TRAINING_EVALUATION.name}{{figure="accuracy",{job}}} 0.75' in text
    assert f"{declared.TRAINING_EVAL_LOSS.name}{{{job}}} 0.5" in text
    assert f"{declared.NON_FINITE_LOSS.name}{{{job}}} 0.0" in text, (
        "present from the start, so that the first event is an increase"
    )
    assert "pid=" not in text


def test_every_declared_metric_of_the_trainer_is_served_with_its_type_help_and_labels(address: str) -> None:
    families = {family.name: family for family in text_string_to_metric_families(get(f"{address}/metrics"))}
    for metric in declared.TRAINER_METRICS:
        family = families.pop(metric.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind, metric.help), metric.name
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == set(metric.labels), metric.name
    assert [name for name in families if not name.endswith("_created")] == [], "there are no other metrics"


def test_values_that_were_never_measured_are_absent(tmp_path: pathlib.Path) -> None:
    state = RunState(tmp_path)
    state.create()
    worker = "from finetune_trainer.monitoring.metrics import WorkerMetrics; WorkerMetrics('team', 'news', 0).set_device_stats()"
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(state.metrics_dir), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", worker], env=environment, check=True)
    registry = build_registry(state)
    served = {family.name for family in registry.collect() if family.samples}
    assert declared.LAST_STEP.name not in served, "a last step in 1970 would look like a stalled job"
    assert declared.GPU_MEMORY_TOTAL.name not in served
    assert declared.CHECKPOINT_FAILURES.name.removesuffix("_total") in served


def test_progress_serves_the_report(address: str) -> None:
    none = {"inPlace": 0, "inPlaceElsewhere": 0}
    assert json.loads(get(f"{address}/progress")) == {"attempt": 3, "phase": "Running", "step": 7, **none}


def test_healthz_answers_and_other_paths_are_not_found(address: str) -> None:
    assert get(f"{address}/healthz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        get(f"{address}/secrets")
    refused.value.close()
