"""Pods of an attempt as processes of this machine: real launchers, torchrun and workers, on a model of a few thousand weights."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from finetune_api.wire import Report, RunConfig
from finetune_trainer.runtime.state import RunState
from trainer import preloaded, small_jobs

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
_PATIENCE_SECONDS = 400.0  # a busy machine may need minutes to start a pod


@dataclasses.dataclass
class Pod:
    """One pod: the process of its launcher, and the directory that it shares with its workers."""

    process: "preloaded.Process | subprocess.Popen[bytes]"
    state: RunState
    log: pathlib.Path
    started_at: float = dataclasses.field(default_factory=time.time)

    def report(self) -> Report | None:
        """Return the report of the workers, as /progress shows it."""
        return self.state.read_report()

    def wait_for(self, what: Callable[[Report], bool]) -> Report:
        """Wait for a report that meets a condition. The pod must not end before."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            report = self.report()
            if report is not None and what(report):
                return report
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> Report:
        """Wait until the training has completed the given step."""
        return self.wait_for(lambda report: report.phase == "Running" and report.step >= step)

    def signal_worker(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a training process."""
        os.kill(self.state.pids()[rank], number)

    def stop(self) -> None:
        """Send SIGTERM, as Kubernetes does."""
        self.process.send_signal(signal.SIGTERM)

    def final_report(self) -> Report:
        """Wait for the end of the pod; return its final report."""
        self.process.wait(_PATIENCE_SECONDS)
        return Report.model_validate_json((self.state.directory / "final-report.json").read_text())


class PodGroup:
    """Starts pods with their files below a directory, on the claim ``small`` with models/ and data/, and ends them all."""

    def __init__(self, directory: pathlib.Path, claim: pathlib.Path) -> None:
        self.directory, self._claim = directory, claim
        self.pods: list[Pod] = []

    def config(self, output: str, nodes: int = 1, processes: int = 1, steps: int = 12, **changes: Any) -> RunConfig:
        """Return a run of the given number of steps, with a checkpoint every three steps."""
        spec = small_jobs.job("text-classification", "encoder", "texts", steps, **{"checkpoint": {"everySteps": 3}, **changes})
        return RunConfig(
            name="job",
            namespace="team",
            spec=spec,  # type: ignore[arg-type]
            nodes=nodes,
            processes_per_node=processes,
            claims={"small": str(self._claim)},
            output=str(self.directory / output),
        )

    def start(
        self, config: RunConfig, index: int = 0, fault: dict[str, Any] | None = None, fresh: bool = False, **environ: str
    ) -> Pod:
        """Start one pod of the attempt.

        fault: see faulty_worker.py. fresh: start a new Python, like a real pod, because a library reads the environment when it
        is imported. Otherwise the processes of the pod have imported all libraries already.
        """
        home = self.directory / f"pod-{len(self.pods)}"
        home.mkdir()
        run_file = home / "run-file.json"
        run_file.write_text(config.model_dump_json(by_alias=True, exclude_none=True))
        path = os.pathsep.join(str(ROOT / part) for part in ("crds", "trainer_image", "tests"))
        env = os.environ | {"PYTHONPATH": path, "FAULT": json.dumps(fault or {}), **environ}
        arguments, log = [str(run_file), str(home), str(index)], home / "log"
        process: preloaded.Process | subprocess.Popen[bytes]
        if fresh:
            with log.open("wb") as stream:
                command = [sys.executable, str(HERE / "pod_launcher.py"), *arguments]
                process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream)
        else:
            process = preloaded.start("trainer.pod_launcher", [*arguments, "--preloaded"], env, log)
        self.pods.append(Pod(process, RunState(home), log))
        return self.pods[-1]

    def run(self, config: RunConfig, fault: dict[str, Any] | None = None, fresh: bool = False) -> tuple[Pod, Report]:
        """Run an attempt of one pod to its end."""
        pod = self.start(config, fault=fault, fresh=fresh)
        return pod, pod.final_report()

    def weights(self, output: str) -> bytes:
        """Return the weights of the finished model."""
        return (self.directory / output / "model" / "model.safetensors").read_bytes()

    def close(self) -> None:
        """Leave no process behind."""
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.process.kill()
                pod.process.wait()
            for pid in pod.state.pids().values():
                _kill(pid, pod.started_at)


def _kill(pid: int, since: float) -> None:
    """Kill a process, unless it has ended and another program has its PID. since: Unix time of the pod's start."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # The kernel rounds the time of a start to hundredths of a second.
        if process.create_time() >= since - 0.1 and process.exe() == os.path.realpath(sys.executable):
            process.kill()
