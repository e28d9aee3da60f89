"""The folder through which launcher and workers of one pod (or one machine) talk.

Files rather than signals or sockets: they work before a worker has imported anything, survive a worker's death, and torchrun
in between need not know of them. Every write is a rename, so a reader never sees half a file.
"""

import contextlib
import os
import pathlib
import time
from typing import Final

import pydantic

from finetune_api.model import Model
from finetune_api.status import Failure
from finetune_api.wire import Report

ENV_STATE_DIR: Final = "FINETUNE_STATE_DIR"
ENV_LAUNCHER_PID: Final = "FINETUNE_LAUNCHER_PID"


class WorkerFailure(Model):
    """What a worker wrote before it ended. time: Unix seconds. symptom: another process's failure shows like this."""

    time: float
    symptom: bool
    failure: Failure


class RunState:
    """Typed access to the files of one run; launcher and every worker have their own instance on the same folder."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    @classmethod
    def from_environment(cls) -> "RunState":
        """The folder that the launcher made and named in the environment."""
        return cls(pathlib.Path(os.environ[ENV_STATE_DIR]))

    def create(self) -> None:
        """Make the folder; the launcher does, before any worker runs."""
        self.metrics_dir.mkdir(parents=True, exist_ok=True)

    @property
    def metrics_dir(self) -> pathlib.Path:
        """Where prometheus-client keeps the values of all workers (its multi-process mode)."""
        return self.directory / "metrics"

    @property
    def _stop(self) -> pathlib.Path:
        return self.directory / "stop"

    @property
    def _report(self) -> pathlib.Path:
        return self.directory / "report.json"

    def request_stop(self) -> None:
        """Ask the workers for a checkpoint and an end."""
        self._stop.touch()

    def stop_requested(self) -> bool:
        """Whether somebody asked for an end; cheap enough for every step."""
        return self._stop.exists()

    def write_report(self, report: Report) -> None:
        """Replace the report that /progress and the terminal show."""
        write_atomically(self._report, report.model_dump_json(by_alias=True, exclude_none=True))

    def read_report(self) -> Report | None:
        """The newest report, None before the first one."""
        with contextlib.suppress(FileNotFoundError):
            return Report.model_validate_json(self._report.read_text())
        return None

    def write_failure(self, rank: int, failure: Failure, symptom: bool) -> None:
        """Leave the reason of this worker's end for the launcher."""
        entry = WorkerFailure(time=time.time(), symptom=symptom, failure=failure)
        write_atomically(self.directory / f"failure-{rank}.json", entry.model_dump_json(by_alias=True, exclude_none=True))

    def root_failure(self) -> Failure | None:
        """The failure that the others follow from: the earliest that is not a symptom of another."""
        found = []
        for path in self.directory.glob("failure-*.json"):
            with contextlib.suppress(pydantic.ValidationError):
                found.append(WorkerFailure.model_validate_json(path.read_text()))
        return min(found, key=lambda entry: (entry.symptom, entry.time)).failure if found else None


def write_atomically(path: pathlib.Path, text: str, durable: bool = False) -> None:
    """Write a whole file or nothing: to a name of this process, then renamed. durable: also if the machine falls right now."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    temporary.replace(path)
