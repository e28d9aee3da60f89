"""Pods of a gang as processes of this machine: the real launchers, torchrun and workers, on a model of a few thousand weights."""

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

from finetune_api.wire import Report, RunConfig
from finetune_trainer.runtime.state import RunState
from trainer import small

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
_PATIENCE_SECONDS = 120.0


@dataclasses.dataclass
class Pod:
    """One pod: its launcher's process, and the folder through which it talks with its workers."""

    process: "subprocess.Popen[bytes]"
    state: RunState
    log: pathlib.Path

    def report(self) -> Report | None:
        """What /progress would show of the workers."""
        return self.state.read_report()

    def wait_for(self, what: Callable[[Report], bool]) -> Report:
        """Wait until a report is as wished; the pod must not end before."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            report = self.report()
            if report is not None and what(report):
                return report
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> Report:
        """Wait until a training has done so many steps."""
        return self.wait_for(lambda report: report.phase == "Running" and report.step >= step)

    def signal_worker(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a training process."""
        os.kill(self.state.pids()[rank], number)

    def stop(self) -> None:
        """As Kubernetes does."""
        self.process.send_signal(signal.SIGTERM)

    def last_word(self) -> Report:
        """Wait for the end."""
        self.process.wait(_PATIENCE_SECONDS)
        return Report.model_validate_json((self.state.directory / "last-word.json").read_text())


class Gang:
    """Starts pods below a directory, which has models/ and data/ of ``small``, and ends them all."""

    def __init__(self, directory: pathlib.Path, claim: pathlib.Path) -> None:
        self.directory, self._claim = directory, claim
        self.pods: list[Pod] = []

    def config(self, output: str, nodes: int = 1, processes: int = 1, steps: int = 12, **changes: Any) -> RunConfig:
        """A run of so many steps, with a checkpoint every third."""
        spec = small.job("text-classification", "encoder", "texts", steps, **{"checkpoint": {"everySteps": 3}, **changes})
        return RunConfig(
            name="job",
            namespace="team",
            spec=spec,  # type: ignore[arg-type]
            nodes=nodes,
            processes_per_node=processes,
            claims={"small": str(self._claim)},
            output=str(self.directory / output),
        )

    def start(self, config: RunConfig, index: int = 0, fault: dict[str, Any] | None = None, **environ: str) -> Pod:
        """Start one pod of the gang. fault: see faulty.py."""
        home = self.directory / f"pod-{len(self.pods)}"
        home.mkdir()
        run_file = home / "run-file.json"
        run_file.write_text(config.model_dump_json(by_alias=True, exclude_none=True))
        path = os.pathsep.join(str(ROOT / part) for part in ("crds", "trainer_image", "tests"))
        env = os.environ | {"PYTHONPATH": path, "FAULT": json.dumps(fault or {}), **environ}
        command = [sys.executable, str(HERE / "pod.py"), str(run_file), str(home), str(index)]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        self.pods.append(Pod(process, RunState(home), home / "log"))
        return self.pods[-1]

    def run(self, config: RunConfig, fault: dict[str, Any] | None = None) -> tuple[Pod, Report]:
        """Run a gang of one pod to its end."""
        pod = self.start(config, fault=fault)
        return pod, pod.last_word()

    def weights(self, output: str) -> bytes:
        """Of the finished model."""
        return (self.directory / output / "model" / "model.safetensors").read_bytes()

    def close(self) -> None:
        """Leave no process behind."""
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.process.kill()
                pod.process.wait()
            for pid in pod.state.pids().values():
                if (pathlib.Path("/proc") / str(pid) / "environ").exists():
                    _kill(pid, pod.state.directory)


def _kill(pid: int, directory: pathlib.Path) -> None:
    """End a process if it is still the one of this run."""
    try:
        if str(directory).encode() in (pathlib.Path("/proc") / str(pid) / "environ").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return
