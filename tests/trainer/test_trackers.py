"""Trackers: a job is one run with each step exactly once, and a training continues if a tracker is unreachable."""

import importlib.util
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_api import names
from finetune_api.spec import Logging
from finetune_api.wire import RunConfig
from finetune_trainer.runtime.state import RunState
from finetune_trainer.trackers import process
from trainer.runner import Runner

SPEC = {
    "task": "causal-lm",
    "model": {"claim": {"claimName": "models"}},
    "datasets": [{"claim": {"claimName": "data"}}],
    "training": {"learningRate": 0.001},
    "pod": {"env": [{"name": "WANDB_API_KEY", "value": "not-to-be-seen-anywhere"}]},
}
KEY = "0123456789abcdef0123456789abcdef01234567"


def config(output: pathlib.Path, *trackers: str) -> RunConfig:
    spec = SPEC | {"logging": {"reportTo": list(trackers)}}
    return RunConfig.model_validate(
        {"name": "small", "namespace": "team", "spec": spec, "nodes": 1, "processesPerNode": 1, "output": str(output)}
    )


def entry(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "learningRate": 0.001, "time": "2026-01-01T00:00:00Z", "attempt": 1}


def evaluation(step: int) -> dict[str, Any]:
    return {"step": step, "evaluation": {"accuracy": step / 100}, "time": "2026-01-01T00:00:00Z", "attempt": 1}


def write_history(output: pathlib.Path, *entries: dict[str, Any]) -> None:
    """Replace the history by a new file, as a training that resumes from a checkpoint does."""
    output.mkdir(exist_ok=True)
    new = output / ".history"
    new.write_text("".join(json.dumps(line) + "\n" for line in entries))
    new.replace(output / "history.jsonl")


class Attempt:
    """The tracker process of one attempt."""

    def __init__(self, output: pathlib.Path, tmp_path: pathlib.Path, environment: dict[str, str], *trackers: str) -> None:
        output.mkdir(exist_ok=True)
        self.log = tmp_path / "trackers.log"
        state = RunState(tmp_path)
        whole = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        with self.log.open("ab") as stream:
            self._process = process.TrackerProcess(config(output, *trackers), state, whole, stream)

    def end(self, outcome: process.Outcome) -> float:
        """End the process; return the seconds that this took."""
        started = time.monotonic()
        self._process.finish(outcome)
        return time.monotonic() - started

    def text(self) -> str:
        return self.log.read_text()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give an interrupted run time to deliver its points: these tests do not cover the short limit of a pod that must end."""
    monkeypatch.setattr(process, "_FLUSH_INTERRUPTED_SECONDS", 30.0)


def three_attempts(output: pathlib.Path, start: Callable[[], Attempt]) -> None:
    """Write ten steps, resume from the checkpoint of step 5, resume again, and end after step 20 with an evaluation."""
    first = start()
    write_history(output, *map(entry, range(1, 11)))
    _until(lambda: "reporting to" in first.text())
    first.end("Interrupted")
    write_history(output, *map(entry, range(1, 6)))
    second = start()
    with (output / "history.jsonl").open("a") as stream:
        for step in range(6, 13):
            stream.write(json.dumps(entry(step)) + "\n")
            stream.flush()
        time.sleep(3)
    write_history(output, *map(entry, range(1, 21)), evaluation(20))  # a restart within the attempt
    (output / "evaluation.json").write_text(json.dumps({"step": 20, "metrics": {"accuracy": 0.25}}))
    second.end("Succeeded")


def test_tensorboard_has_each_step_once_after_two_restarts(tmp_path: pathlib.Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard")
    output = tmp_path / "out"
    three_attempts(output, lambda: Attempt(output, tmp_path, {}, "tensorboard"))
    events = accumulator.EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss", "train/learningRate", "eval/accuracy", "final/accuracy"]
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 21))
    assert [event.value for event in losses] == pytest.approx([1 / step for step in range(1, 21)])
    assert [(event.step, event.value) for event in events.Scalars("eval/accuracy")] == [(20, pytest.approx(0.2))]


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run MLflow's own server, by the command `mlflow` on the PATH (or in FINETUNE_TEST_MLFLOW)."""
    command = os.environ.get("FINETUNE_TEST_MLFLOW") or shutil.which("mlflow", path=os.environ["PATH"])
    if command is None or "skinny" in _kind(command):
        pytest.skip("no MLflow server: pip install mlflow in a virtual environment, and set FINETUNE_TEST_MLFLOW to its command")
    directory = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    store = ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--artifacts-destination", str(directory / "artifacts")]
    with (directory / "log").open("wb") as stream:
        server = subprocess.Popen(
            [command, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "PYTHONPATH": ""},
            start_new_session=True,
        )
    try:
        _wait_for(port, directory / "log")
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _kind(command: str) -> str:
    """Tell mlflow from mlflow-skinny, which has a command of the same name and no server."""
    python = pathlib.Path(command).parent / "python"
    probe = "import importlib.metadata as m; print([d.name for d in m.distributions() if 'mlflow' in d.name.lower()])"
    installed = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False).stdout
    return "full" if "'mlflow'" in installed else "skinny"


def _wait_for(port: int, log: pathlib.Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture
def mlflow_client(mlflow_server: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(mlflow_server)


def test_mlflow_has_one_run_with_each_step_once_after_two_restarts(
    tmp_path: pathlib.Path, mlflow_server: str, mlflow_client: Any
) -> None:
    output = tmp_path / "out"
    environment = {"MLFLOW_TRACKING_URI": mlflow_server, "MLFLOW_EXPERIMENT_NAME": "restarts"}
    three_attempts(output, lambda: Attempt(output, tmp_path, environment, "mlflow"))
    experiment = mlflow_client.get_experiment_by_name("restarts")
    [run] = mlflow_client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "small"
    losses = sorted((metric.step, metric.value) for metric in mlflow_client.get_metric_history(run.info.run_id, "train/loss"))
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 21)]
    assert run.data.metrics["eval/accuracy"] == pytest.approx(0.2)
    assert run.data.metrics["final/accuracy"] == pytest.approx(0.25)
    assert run.data.params["spec.training.learningRate"] == "0.001"
    assert run.data.params["spec.pod.env.0.name"] == "WANDB_API_KEY"
    assert "not-to-be-seen-anywhere" not in str(run.data.params)


def test_mlflow_gets_missed_points_when_it_is_reachable_again(
    tmp_path: pathlib.Path, mlflow_server: str, mlflow_client: Any
) -> None:
    port = int(mlflow_server.rpartition(":")[2])
    output = tmp_path / "out"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gate = probe.getsockname()[1]
    environment = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{gate}", "MLFLOW_EXPERIMENT_NAME": "away"}
    attempt = Attempt(output, tmp_path, environment, "mlflow")
    write_history(output, *map(entry, range(1, 6)))
    _until(lambda: "can't be reached" in attempt.text())
    relay = subprocess.Popen([sys.executable, "-c", RELAY, str(gate), str(port)])
    try:
        _until(
            lambda: (found := mlflow_client.get_experiment_by_name("away")) and mlflow_client.search_runs([found.experiment_id])
        )
        attempt.end("Succeeded")
    finally:
        relay.kill()
        relay.wait()
    [run] = mlflow_client.search_runs([mlflow_client.get_experiment_by_name("away").experiment_id])
    assert [metric.step for metric in mlflow_client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4, 5]
    assert attempt.text().count("can't be reached") == 1, "the warning is logged once"


RELAY = """
import socket, sys, threading
def pump(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
    except OSError: pass
    for end in (a, b):
        try: end.shutdown(2)
        except OSError: pass
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = server.accept()
    other = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for pair in ((client, other), (other, client)): threading.Thread(target=pump, args=pair, daemon=True).start()
"""


def _until(true: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_wandb_offline_is_one_run_over_all_attempts_and_keeps_no_key(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    output = tmp_path / "out"
    three_attempts(output, lambda: Attempt(output, tmp_path, {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "wandb"))
    made = json.loads((output / "trackers.json").read_text())["id"]
    runs = sorted((output / "wandb").glob("offline-run-*"))
    assert [directory.name.rpartition("-")[2] for directory in runs] == [made, made], "wandb sync merges them into one run"
    steps = [step for directory in runs for step in wandb_steps(next(directory.glob("*.wandb")))]
    assert steps == list(range(1, 21))
    everything = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert KEY.encode() not in everything
    assert b"not-to-be-seen-anywhere" not in everything


def wandb_steps(path: pathlib.Path) -> list[int]:
    """Return the steps of the rows in a file of wandb."""
    from wandb.proto import wandb_internal_pb2

    steps = []
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in row:
                steps.append(row["_step"])
    return steps


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Read the records of LevelDB's log format: blocks of 32 KiB, records in fragments with checksum, length and type."""
    place, block, header, record = 7, 32768, 7, b""
    while place + header <= len(content):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + header])
        record += content[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # a full record, or its last fragment
            yield record
            record = b""


def test_unreachable_trackers_cost_a_training_only_one_warning_each(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner()
    with socket.socket() as silent:  # accepts connections and never answers, which is the worst case
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        address = f"http://user:hidden-word@127.0.0.1:{silent.getsockname()[1]}"
        environment = {**os.environ, "MLFLOW_TRACKING_URI": address, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        job = runner.job(logging={"reportTo": ["mlflow", "wandb"]})
        started = time.monotonic()
        ended = subprocess.run(
            runner.command(job, "out"), capture_output=True, text=True, timeout=300, check=False, env=environment
        )
        took = time.monotonic() - started
    assert ended.returncode == 0, ended.stderr
    history = runner.history()
    trained = sum(line.get("stepSeconds", 0.0) for line in history)
    assert took < 150 + trained  # the libraries would wait for many minutes
    log = (runner.directory / "out" / "train.log").read_text()
    assert log.count("can't be reached") <= 2
    assert KEY not in log
    assert "hidden-word" not in log


def test_a_missing_library_or_address_is_reported_before_anything_starts(
    make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ended = runner.run(runner.job(logging={"reportTo": ["tensorboard", "mlflow"]}))
    assert ended.returncode == names.EXIT_REFUSED
    assert "spec.logging.reportTo[1]: mlflow needs the address of a server: set MLFLOW_TRACKING_URI" in ended.stderr
    assert not (runner.directory / "out" / "history.jsonl").exists()

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    with pytest.raises(
        Exception, match=r"wandb needs the package wandb, which is not installed here: pip install 'finetune-operator\[tr"
    ):
        process.check(Logging(report_to=["wandb"]), {})
