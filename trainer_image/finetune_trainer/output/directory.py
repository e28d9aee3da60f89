"""The output directory: what lies where, and whose it is."""

import contextlib
import errno
import itertools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Collection, Sequence
from typing import Any

import pydantic

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import Resolved
from finetune_api.wire import Report, RunConfig, training_digest
from finetune_trainer.publish.upload_filter import shareable_spec
from finetune_trainer.runtime.disk import sync
from finetune_trainer.runtime.state import write_atomically

log = logging.getLogger(__name__)


# All that a training writes beside checkpoints and model, its trackers and its report among them.
_OF_A_TRAINING = frozenset(
    {
        *("run.json", "data.json", "history.jsonl", "starts.jsonl", "evaluation.json", "skipped.json", "best"),
        *("trackers.json", "tensorboard", "wandb", "report.html"),
    }
)


def _owner(config: RunConfig) -> dict[str, Any]:
    """Whose training it is, as run.json has it."""
    return {"name": config.name} | ({"uid": config.job_uid} if config.job_uid else {})


class Output:
    """Paths below the output directory.

    run.json: whose it is (spec and its digest, resolved commits). data.json: what the data sets held. starts.jsonl: one object
    per start. report.json: there when the training is through; the finished model lies in model/ from then on. history.jsonl: one
    object per logged step, and per evaluation. evaluation.json: all figures. best/: the models that a checkpoint, or the
    training, knows as the best so far. owner.json: see fence.py, skipped.json: see skipping.py.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.model = directory / "model"
        self.checkpoints = directory / "checkpoints"
        self.history = directory / "history.jsonl"
        self.starts = directory / "starts.jsonl"
        self.evaluation = directory / "evaluation.json"
        self.report = directory / "report.json"
        self._run = directory / "run.json"
        self._data = directory / "data.json"

    def claim(self, config: RunConfig) -> Resolved | None:
        """Make the directory this run's, or find that it is already: returns the commits that were resolved for it.

        Raises FineTuneError when it holds the work of a job that trains another model, or can't be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            digest = training_digest(config.spec)
            if self._run.exists():
                run = json.loads(self._run.read_text())
                if run["digest"] != digest:
                    raise FineTuneError(
                        Reason.OUTPUT_CONFLICT,
                        f"the output directory {self.directory} holds the work of {run['name']!r}, which trains another model "
                        "(model, datasets or training differ); choose another one, or remove that",
                    )
                return Resolved.model_validate(run["resolved"]) if run.get("resolved") else None
            self._write_run({**_owner(config), "digest": digest})
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise self._unwritable(error, f"give user {os.getuid()} the right to, or choose another directory") from None
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            raise self._unwritable(error, "mount it for writing") from None
        return None

    def holds_unfinished_work_of_another(self, config: RunConfig) -> bool:
        """Whether there are checkpoints of an earlier FineTuneJob, where the output was left by one."""
        return not self._belongs_to(config) and any(self.checkpoints.glob("[!.]*"))

    def make_way(self, config: RunConfig) -> None:
        """Remove what an earlier FineTuneJob has left here of a training that came to nothing: its account, and its curves.

        Raises FineTuneError where it can't.
        """
        if not config.adopted or self._belongs_to(config) or not self.directory.is_dir():
            return
        if self.model.is_dir() or self.holds_unfinished_work_of_another(config):
            return
        try:
            for left in self.directory.iterdir():
                if left.name in _OF_A_TRAINING:
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error, "remove what an earlier job has left there") from None

    def _belongs_to(self, config: RunConfig) -> bool:
        try:
            return bool(config.job_uid) and json.loads(self._run.read_text()).get("uid") == config.job_uid
        except (OSError, ValueError):
            return False

    def _unwritable(self, error: OSError, remedy: str) -> FineTuneError:
        return FineTuneError(
            Reason.CONFIGURATION_ERROR, f"the output directory {self.directory} can't be written: {error.strerror}; {remedy}"
        )

    def keep_resolved(self, config: RunConfig, resolved: Resolved) -> None:
        """Remember the commits, so that whoever goes on with this directory trains the same model on the same data."""
        content = {**_owner(config), "digest": training_digest(config.spec), "resolved": resolved.to_wire()}
        content["spec"] = shareable_spec(config.spec)  # for the report; what decides is the digest
        if config.spec.publish:
            content["repository"] = config.spec.publish.repository
        self._write_run(content)

    def claim_data(self, contents: Sequence[str]) -> None:
        """Remember what the data sets hold. Raises FineTuneError where a checkpoint has learned from others."""
        try:
            before = json.loads(self._data.read_text())
        except (OSError, ValueError):
            before = None
        if before is not None and before != list(contents) and any(self.checkpoints.glob("[!.]*")):
            changed = [index for index, pair in enumerate(itertools.zip_longest(before, contents)) if pair[0] != pair[1]]
            fields = " and ".join(f"spec.datasets[{index}]" for index in changed)
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{fields}: its files have changed since this training began, and what it has learned so far is from the old "
                "ones; put them back, or train under another name, with another output",
            )
        if before != list(contents):
            write_atomically(self._data, json.dumps(list(contents)), durable=True)

    def resolved(self) -> dict[str, Any] | None:
        """The commits that were resolved for it, as they were written down."""
        with contextlib.suppress(OSError, ValueError):
            resolved: dict[str, Any] | None = json.loads(self._run.read_text()).get("resolved")
            return resolved
        return None

    def _write_run(self, content: dict[str, Any]) -> None:
        """An empty file after a machine's fall would keep every later attempt out."""
        write_atomically(self._run, json.dumps(content), durable=True)

    def finished_report(self) -> Report | None:
        """The report of a training that is through."""
        try:
            return Report.model_validate_json(self.report.read_text()) if self.model.is_dir() else None
        except (FileNotFoundError, pydantic.ValidationError):
            return None

    def commit_model(self, written: pathlib.Path) -> None:
        """Give a written model its final name, when all of it is on the disk: the report that follows must not outlive it."""
        for path in written.iterdir():
            sync(path)
        shutil.rmtree(self.model, ignore_errors=True)
        written.rename(self.model)
        sync(self.directory)

    def best_model(self, step: int) -> pathlib.Path:
        """Where the model goes that an evaluation after ``step`` steps found to be the best so far."""
        return self.directory / "best" / f"step-{step}"

    def best_models(self) -> list[pathlib.Path]:
        """All that are there."""
        return list((self.directory / "best").glob("step-*"))

    def durable_before(self, best: int | None) -> list[pathlib.Path]:
        """Files that must be on the disk before a checkpoint is: the history, and the model that it knows as the best so far."""
        files = [self.history] if self.history.exists() else []
        if best is not None:
            files += [*self.best_model(best).iterdir(), self.best_model(best), self.best_model(best).parent]
        return files

    def drop_best_models(self, known: Collection[int], before: int) -> None:
        """Drop those of steps ``before`` and earlier that no checkpoint knows as the best any more."""
        for directory in self.best_models():
            step = int(directory.name.removeprefix("step-"))
            if step <= before and step not in known:
                shutil.rmtree(directory, ignore_errors=True)

    def append_history(self, lines: Sequence[str]) -> list[str]:
        """Add lines to the history, all or none of them; those that could not be written, as on a disk that is full."""
        text = "".join(lines).encode()
        try:
            with self.history.open("ab", buffering=0) as stream:
                size = stream.tell()
                if stream.write(text) == len(text):
                    return []
                stream.truncate(size)
        except OSError as error:
            log.warning("%s can't be written: %s", self.history, error.strerror)
        return list(lines)

    def truncate_history(self, step: int) -> list[dict[str, Any]]:
        """Drop what was logged after ``step``, as it is going to be done again; what is left."""
        if not self.history.exists():
            return []
        lines = self.history.read_text(errors="replace").splitlines()
        kept = [entry for line in lines if (entry := _entry(line)) is not None and entry["step"] <= step]
        if len(kept) < len(lines):
            write_atomically(self.history, "".join(json.dumps(entry) + "\n" for entry in kept), durable=True)
        return kept


def _entry(line: str) -> dict[str, Any] | None:
    """A line of the history; None for one that was cut off in the middle, wherever that was."""
    with contextlib.suppress(json.JSONDecodeError):
        entry = json.loads(line)
        return entry if isinstance(entry, dict) and "step" in entry else None
    return None
