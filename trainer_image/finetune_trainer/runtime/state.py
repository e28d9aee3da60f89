"""The folder through which launcher, agent and workers of one pod (or one machine) communicate.

They use files rather than signals or sockets. Files work before a worker has imported anything, and survive a worker's death.
torchrun, which starts the workers, does not need to know them. Every write is a rename, so a reader never sees half a file.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Final

import pydantic
from pydantic import Field

from finetune_api import names
from finetune_api.model import Model
from finetune_api.status import Failure
from finetune_api.wire import Report

ENV_STATE_DIR: Final = "FINETUNE_STATE_DIR"
ENV_LAUNCHER_PID: Final = "FINETUNE_LAUNCHER_PID"
ENV_START_TIME: Final = "FINETUNE_BEGAN"  # Unix time at which the agent began to start the processes, before their imports
HEARTBEAT_PREFIX: Final = "beat-"  # plus the rank: a file that each unit of work touches, see heartbeat.py


class WorkerFailure(Model):
    """The failure that a worker wrote before it ended. time: Unix seconds. secondary: a symptom of another process's failure."""

    time: float
    secondary: bool
    failure: Failure


class WorkerGeneration(Model):
    """The processes of this pod between two restarts in place. time: Unix seconds of their start. pids: by rank."""

    time: float
    pids: Mapping[int, int] = Field(default_factory=dict)


class RestartHistory(Model):
    """The restarts in place of this attempt.

    in_place: restarts that are charged. highest_step: highest step at a failure so far. restarts_without_progress: charged
    restarts in a row without a further step. secondary_restarts: the same for restarts that another pod's failure caused, which
    are not charged. handled_until: Unix time up to which failures are handled. final_failure: the failure that ended the attempt.
    """

    in_place: int = 0
    highest_step: int = 0
    restarts_without_progress: int = 0
    secondary_restarts: int = 0
    handled_until: float = 0.0
    final_failure: Failure | None = None


class RunState:
    """Typed access to the files of one run. The launcher and every worker have their own instance for the same folder."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    @classmethod
    def from_environment(cls) -> "RunState":
        """Return the state in the folder that the launcher created and named in the environment."""
        return cls(pathlib.Path(os.environ[ENV_STATE_DIR]))

    def create(self) -> None:
        """Create the folder. The launcher calls this before any worker runs."""
        self.metrics_dir.mkdir(parents=True, exist_ok=True)

    @property
    def metrics_dir(self) -> pathlib.Path:
        """Folder in which prometheus-client keeps the values of all workers (its multi-process mode)."""
        return self.directory / "metrics"

    @property
    def _stop(self) -> pathlib.Path:
        return self.directory / "stop"

    @property
    def _restarts_forbidden(self) -> pathlib.Path:
        return self.directory / "over"

    @property
    def _report(self) -> pathlib.Path:
        return self.directory / "report.json"

    # --- requests of the launcher ---------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and end."""
        self._stop.touch()

    def stop_requested(self) -> bool:
        """Return whether a stop was requested. Cheap enough for every step."""
        return self._stop.exists()

    def forbid_restarts(self) -> None:
        """Forbid restarts of workers from now on, because the attempt is over."""
        self._restarts_forbidden.touch()

    def may_restart(self) -> bool:
        """Return whether a worker that ends may be restarted."""
        return not self._restarts_forbidden.exists() and not self.stop_requested()

    # --- the key of the attempt -----------------------------------------------------------------------------------------

    @property
    def _rendezvous_key(self) -> pathlib.Path:
        return self.directory / names.RENDEZVOUS_KEY_FILE_NAME

    def write_rendezvous_key(self, key: str) -> None:
        """Hand the key over to agent and workers, in a file that only this user can read."""
        with os.fdopen(os.open(self._rendezvous_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(key)

    def read_rendezvous_key(self) -> bytes:
        """Return the key with which the processes of the attempt sign what they exchange."""
        return self._rendezvous_key.read_bytes()

    # --- progress -------------------------------------------------------------------------------------------------------

    def write_report(self, report: Report) -> None:
        """Replace the report that /progress and the terminal show."""
        write_atomically(self._report, report.model_dump_json(by_alias=True, exclude_none=True))

    def read_report(self) -> Report | None:
        """Return the newest report; None before the first one."""
        with contextlib.suppress(FileNotFoundError):
            return Report.model_validate_json(self._report.read_text())
        return None

    def last_heartbeat(self) -> tuple[int, str]:
        """Return the newest heartbeat of this pod: a number that is different for each heartbeat, and the stage.

        The start of a generation of workers counts as a heartbeat.
        """
        beats = []
        for path in (self._generation, *self.directory.glob(f"{HEARTBEAT_PREFIX}*")):
            with contextlib.suppress(FileNotFoundError):
                beats.append((path.stat().st_mtime_ns, "starting" if path == self._generation else path.read_text()))
        return max(beats, default=(0, "starting"))

    # --- processes and their failures -----------------------------------------------------------------------------------

    @property
    def _generation(self) -> pathlib.Path:
        return self.directory / "round.json"

    def record_generation(self, pids: Mapping[int, int]) -> None:
        """Record the processes that were just started, by rank."""
        write_atomically(self._generation, WorkerGeneration(time=time.time(), pids=pids).model_dump_json())

    def pids(self) -> Mapping[int, int]:
        """Return the processes that were started last, by rank; empty before the first start."""
        with contextlib.suppress(FileNotFoundError):
            return WorkerGeneration.model_validate_json(self._generation.read_text()).pids
        return {}

    def live_pids(self) -> list[int]:
        """Return the processes of pids() that have not ended."""
        found = []
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                found.append(pid)
        return found

    def stacks(self, rank: int) -> pathlib.Path:
        """Return the file to which a worker writes the stacks of its threads on request."""
        return self.directory / f"stacks-{rank}.txt"

    def write_failure(self, rank: int, failure: Failure, secondary: bool) -> None:
        """Record why this worker ends, for the restart policy."""
        entry = WorkerFailure(time=time.time(), secondary=secondary, failure=failure)
        # A process of a later generation has the same rank, and must not overwrite this failure.
        path = self.directory / f"failure-{rank}-{os.getpid()}.json"
        write_atomically(path, entry.model_dump_json(by_alias=True, exclude_none=True))

    def failures(self, since: float = 0.0) -> list[WorkerFailure]:
        """Return the failures that workers wrote after the Unix time ``since``, the cause first.

        The cause is the earliest failure that is not a symptom of another one.
        """
        found = []
        for path in self.directory.glob("failure-*.json"):
            with contextlib.suppress(pydantic.ValidationError):
                found.append(WorkerFailure.model_validate_json(path.read_text()))
        return sorted((entry for entry in found if entry.time > since), key=lambda entry: (entry.secondary, entry.time))

    def read_restart_history(self) -> RestartHistory:
        """Return the restarts in place so far."""
        with contextlib.suppress(FileNotFoundError):
            return RestartHistory.model_validate_json((self.directory / "ledger.json").read_text())
        return RestartHistory()

    def write_restart_history(self, history: RestartHistory) -> None:
        """Replace the restart history."""
        write_atomically(self.directory / "ledger.json", history.model_dump_json(by_alias=True, exclude_none=True))

    # --- memory ---------------------------------------------------------------------------------------------------------

    def limit_micro_batch(self, rows: int) -> None:
        """Limit forward passes to ``rows`` rows from now on, because more did not fit."""
        write_atomically(self.directory / "micro-batch", str(rows))

    def micro_batch_limit(self) -> int | None:
        """Return the maximum rows of a forward pass on this pod; None if no limit was set."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.directory / "micro-batch").read_text())
        return None


def write_atomically(path: pathlib.Path, text: str, durable: bool = False) -> None:
    """Write a temporary file and rename it, so the file is complete or unchanged. durable: even if the node crashes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    temporary.replace(path)
