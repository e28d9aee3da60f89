"""Writes job files and runs them with `finetune run`."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import yaml

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "news.yaml"


def comparable_history(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a history without times, throughput and attempts, so that runs with the same steps compare equal."""
    others = ("time", "attempt", "stepSeconds", "samplesPerSecond", "tokensPerSecond")
    return [{name: value for name, value in entry.items() if name not in others} for entry in history]


@dataclasses.dataclass
class Runner:
    """Writes job files and runs them."""

    directory: pathlib.Path
    claims: dict[str, pathlib.Path]

    def job(self, **changes: Any) -> pathlib.Path:
        """Write the example with small data and the changes: training, dataset, or any other field of spec."""
        job = yaml.safe_load(EXAMPLE.read_text())
        spec = job["spec"]
        spec["datasets"][0] |= {"maxTrainSamples": 61, "maxEvalSamples": 45} | changes.pop("dataset", {})
        spec["training"] = {"maxTokens": 48, "globalBatchSize": 8, "epochs": 2, "learningRate": 1e-3} | changes.pop(
            "training", {}
        )
        spec |= changes
        path = self.directory / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def command(self, job: pathlib.Path, output: str, processes: int = 1, *options: str) -> list[str]:
        claims = [option for name, path in self.claims.items() for option in ("--claim", f"{name}={path}")]
        place = ["--output", str(self.directory / output), "--processes", str(processes)]
        return [sys.executable, "-m", "finetune_trainer", "run", str(job), *claims, *place, *options]

    def run(self, job: pathlib.Path, output: str = "out", processes: int = 1) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(job, output, processes), capture_output=True, text=True, timeout=1200, check=False)

    def interrupt_after(self, step: int, job: pathlib.Path, output: str = "out", processes: int = 1) -> int:
        """Start, send SIGINT once ``step`` is in the history, and return the exit code."""
        process = subprocess.Popen(
            self.command(job, output, processes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not any(entry["step"] >= step for entry in self.history(output)):
            assert process.poll() is None, "ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        return process.wait(120)

    def history(self, output: str = "out") -> list[dict[str, Any]]:
        path = self.directory / output / "history.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def weights(self, output: str = "out") -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.directory / output / "model" / "model.safetensors")
