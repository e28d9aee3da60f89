"""The folder through which launcher, torchrun and workers of one pod (or one machine) talk.

Files rather than signals or sockets: they work before a worker has imported anything, survive a worker's death, and torchrun
in between need not know of them. Every write is a rename, so a reader never sees half a file.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Final

import pydantic
from pydantic import Field

from finetune_api.model import Model
from finetune_api.status import Failure
from finetune_api.wire import Report

ENV_STATE_DIR: Final = "FINETUNE_STATE_DIR"
ENV_LAUNCHER_PID: Final = "FINETUNE_LAUNCHER_PID"
ENV_BEGAN: Final = "FINETUNE_BEGAN"  # Unix time at which the start of the processes began, what they import included
BEAT: Final = "beat-"  # with the rank: a file that is touched with each unit of work, see heartbeat.py


class WorkerFailure(Model):
    """What a worker wrote before it ended. time: Unix seconds. symptom: another process's failure shows like this."""

    time: float
    symptom: bool
    failure: Failure


class Round(Model):
    """The processes of this pod between two restarts in place. time: when they were started, Unix seconds. pids: by rank."""

    time: float
    pids: Mapping[int, int] = Field(default_factory=dict)


class Ledger(Model):
    """The restarts in place of this attempt.

    in_place: those that count as failures. furthest: highest step seen at a failure. futile: restarts in a row since which no
    further step was done. symptoms: the same of restarts that only another pod's failure made necessary. decided: Unix time up
    to which failures were dealt with. end: the failure that ended the attempt.
    """

    in_place: int = 0
    furthest: int = 0
    futile: int = 0
    symptoms: int = 0
    decided: float = 0.0
    end: Failure | None = None


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
    def _over(self) -> pathlib.Path:
        return self.directory / "over"

    @property
    def _report(self) -> pathlib.Path:
        return self.directory / "report.json"

    # --- the launcher's wishes ------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Ask the workers for a checkpoint and an end."""
        self._stop.touch()

    def stop_requested(self) -> bool:
        """Whether somebody asked for an end; cheap enough for every step."""
        return self._stop.exists()

    def forbid_restarts(self) -> None:
        """From now on a worker that ends is not started again: the attempt is over."""
        self._over.touch()

    def may_restart(self) -> bool:
        """Whether a worker that ends may be started again."""
        return not self._over.exists() and not self.stop_requested()

    # --- how far it is --------------------------------------------------------------------------------------------------

    def write_report(self, report: Report) -> None:
        """Replace the report that /progress and the terminal show."""
        write_atomically(self._report, report.model_dump_json(by_alias=True, exclude_none=True))

    def read_report(self) -> Report | None:
        """The newest report, None before the first one."""
        with contextlib.suppress(FileNotFoundError):
            return Report.model_validate_json(self._report.read_text())
        return None

    def last_beat(self) -> tuple[int, str]:
        """When the newest unit of work of this pod was done, in a number that only ever changes, and of which stage.

        The start of a round of processes counts as one.
        """
        beats = []
        for path in (self._round, *self.directory.glob(f"{BEAT}*")):
            with contextlib.suppress(FileNotFoundError):
                beats.append((path.stat().st_mtime_ns, "starting" if path == self._round else path.read_text()))
        return max(beats, default=(0, "starting"))

    # --- processes, and how they ended ----------------------------------------------------------------------------------

    @property
    def _round(self) -> pathlib.Path:
        return self.directory / "round.json"

    def begin_round(self, pids: Mapping[int, int]) -> None:
        """Write down the processes that were just started, by rank."""
        write_atomically(self._round, Round(time=time.time(), pids=pids).model_dump_json())

    def pids(self) -> Mapping[int, int]:
        """The processes that were started last, by rank; none before the first."""
        with contextlib.suppress(FileNotFoundError):
            return Round.model_validate_json(self._round.read_text()).pids
        return {}

    def alive(self) -> list[int]:
        """Those of them that have not ended."""
        found = []
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                found.append(pid)
        return found

    def stacks(self, rank: int) -> pathlib.Path:
        """Where a worker writes the stacks of its threads when it is asked for them."""
        return self.directory / f"stacks-{rank}.txt"

    def write_failure(self, rank: int, failure: Failure, symptom: bool) -> None:
        """Leave the reason of this worker's end for the launcher."""
        entry = WorkerFailure(time=time.time(), symptom=symptom, failure=failure)
        # A process of a later round has the same rank, and must not overwrite what this one said.
        path = self.directory / f"failure-{rank}-{os.getpid()}.json"
        write_atomically(path, entry.model_dump_json(by_alias=True, exclude_none=True))

    def failures(self, since: float = 0.0) -> list[WorkerFailure]:
        """What workers wrote after the Unix time ``since``; that which the others follow from first.

        It is the earliest that is not a symptom of another.
        """
        found = []
        for path in self.directory.glob("failure-*.json"):
            with contextlib.suppress(pydantic.ValidationError):
                found.append(WorkerFailure.model_validate_json(path.read_text()))
        return sorted((entry for entry in found if entry.time > since), key=lambda entry: (entry.symptom, entry.time))

    def read_ledger(self) -> Ledger:
        """The restarts in place so far."""
        with contextlib.suppress(FileNotFoundError):
            return Ledger.model_validate_json((self.directory / "ledger.json").read_text())
        return Ledger()

    def write_ledger(self, ledger: Ledger) -> None:
        """Replace the account of restarts in place."""
        write_atomically(self.directory / "ledger.json", ledger.model_dump_json(by_alias=True, exclude_none=True))

    # --- memory ---------------------------------------------------------------------------------------------------------

    def limit_micro_batch(self, rows: int) -> None:
        """From now on forward passes of at most so many rows: more did not fit."""
        write_atomically(self.directory / "micro-batch", str(rows))

    def micro_batch_limit(self) -> int | None:
        """The most rows of a forward pass that this pod has memory for; None where nothing is known against any number."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.directory / "micro-batch").read_text())
        return None


def write_atomically(path: pathlib.Path, text: str, durable: bool = False) -> None:
    """Write a whole file or nothing: to a name of this process, then renamed. durable: also if the machine falls right now."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    temporary.replace(path)
