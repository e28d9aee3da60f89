"""The pod's HTTP port, with values that a worker in another process left."""

import json
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from finetune_api import metrics as declared
from finetune_api.wire import Report
from finetune_trainer import telemetry
from finetune_trainer.state import RunState

WORKER = """
from finetune_api import metrics
from finetune_trainer.metrics import WorkerMetrics
for rank in (0, 1):
    worker = WorkerMetrics("team", "news", rank)
    worker.set(metrics.TRAINING_LOSS, 0.25 + rank)
    worker.step(0.5, now=1000.0)
    worker.tokens(128)
"""


@pytest.fixture
def address(tmp_path: pathlib.Path) -> Iterator[str]:
    state = RunState(tmp_path)
    state.create()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(state.metrics_dir), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    registry = telemetry.build_registry(state)
    pushes = telemetry.PushMetrics(registry, "team", "news")
    pushes.succeeded(1.5)
    server = telemetry.serve(0, registry, lambda: Report(attempt=3, phase="Running", step=7))
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own server
        return answer.read().decode()


def test_metrics_of_all_workers_and_of_the_launcher_are_served_as_declared(address: str) -> None:
    text = get(f"{address}/metrics")
    job = 'finetunejob="news",namespace="team"'
    assert f"{declared.TRAINING_LOSS.name}{{{job}}} 0.25" in text, "rank 0 speaks for the job"
    for rank in (0, 1):
        assert f'{declared.TRAINING_TOKENS.name}{{{job},rank="{rank}"}} 128.0' in text
        assert f'{declared.STEP_DURATION.name}_count{{{job},rank="{rank}"}} 1.0' in text
        assert f'{declared.LAST_STEP.name}{{{job},rank="{rank}"}} 1000.0' in text
    assert f"{declared.HUB_PUSH_DURATION.name}{{{job}}} 1.5" in text
    assert f"{declared.HUB_PUSH_FAILURES.name}{{{job}}} 0.0" in text
    assert "pid=" not in text


def test_progress_is_the_report(address: str) -> None:
    assert json.loads(get(f"{address}/progress")) == {"attempt": 3, "phase": "Running", "step": 7}


def test_healthz_answers_and_nothing_else_is_there(address: str) -> None:
    assert get(f"{address}/healthz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        get(f"{address}/secrets")
    refused.value.close()
