"""The output directory: which files it has, and which job owns it."""

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

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import read_spec
from finetune_api.status import Resolved
from finetune_api.wire import Report, RunConfig, training_differences, training_digest
from finetune_trainer.publish.upload_filter import shareable_spec
from finetune_trainer.runtime.disk import sync
from finetune_trainer.runtime.state import write_atomically

log = logging.getLogger(__name__)


_MAX_DIFFERENCES = 8  # fields that an error names
# Everything that a training writes except checkpoints and model, including the files of trackers and the report.
_RUN_FILES = frozenset(
    {
        *("run.json", "data.json", "history.jsonl", "starts.jsonl", "evaluation.json", "skipped.json", "best"),
        *("trackers.json", "tensorboard", "wandb", "report.html", "logs"),
    }
)


def _owner(config: RunConfig) -> dict[str, Any]:
    """Return the fields of run.json that name the owner of the training."""
    return {"name": config.name} | ({"uid": config.job_uid} if config.job_uid else {})


class OutputDirectory:
    """Paths below the output directory.

    run.json: the owner, the spec and its digest, resolved commits, the directories of claims. data.json: what each data set
    contained. starts.jsonl: one object per start. report.json: exists when the training is finished; from then on, model/ has
    the model. history.jsonl: one object per logged step, and per evaluation. evaluation.json: all metrics. best/: the models that
    a checkpoint, or the training, names as the best so far. logs/: see pod/log_tail.py. owner.json: see fence.py.
    skipped.json: see skipped_batches.py.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.model = directory / "model"
        self.checkpoints = directory / "checkpoints"
        self.history = directory / "history.jsonl"
        self.starts = directory / "starts.jsonl"
        self.evaluation = directory / "evaluation.json"
        self.report = directory / "report.json"
        self.logs = directory / "logs"
        self._run = directory / "run.json"
        self._data = directory / "data.json"

    def acquire(self, config: RunConfig) -> Resolved | None:
        """Make this run the owner of the directory, unless it is already. Return the commits that were resolved for it.

        Raises FineTuneError if the directory holds the work of a job that trains another model, or can't be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            digest = training_digest(config.spec)
            if self._run.exists():
                run = json.loads(self._run.read_text())
                if run["digest"] != digest:
                    raise self._conflict(run, config)
                return Resolved.model_validate(run["resolved"]) if run.get("resolved") else None
            self._write_run({**_owner(config), "digest": digest, "spec": shareable_spec(config.spec)})
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise self._write_error(error, f"give user {os.getuid()} write access, or choose another directory") from None
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            raise self._write_error(error, "mount it for writing") from None
        return None

    def _conflict(self, run: dict[str, Any], config: RunConfig) -> FineTuneError:
        """Return the error for the work of a job that trains another model: which fields differ, and what to do here."""
        differing = ["model, datasets or training differ"]
        with contextlib.suppress(FineTuneError):  # a spec of another version
            differing = training_differences(read_spec(run.get("spec")), config.spec) or differing
        in_pod = self.directory.is_relative_to(names.OUTPUT_DIR)
        remedy = "name another claim or path in spec.output" if in_pod else "write another directory with --output"
        shown = "; ".join(differing[:_MAX_DIFFERENCES]) + ("; …" if len(differing) > _MAX_DIFFERENCES else "")
        return FineTuneError(
            Reason.OUTPUT_CONFLICT,
            f"the output directory {self.directory} holds the work of {run['name']!r}, which trains another model: {shown}; "
            f"{remedy}, or remove that work",
        )

    def accepts(self, config: RunConfig) -> bool:
        """Return whether no other work is in the directory, so that this run may write to it."""
        try:
            run = json.loads(self._run.read_text())
        except OSError:
            return True
        except ValueError:
            return False
        return self._belongs_to(config) if config.adopted else run.get("digest") == training_digest(config.spec)

    def has_unfinished_run_of_other_job(self, config: RunConfig) -> bool:
        """Return whether the directory belongs to another job and has checkpoints."""
        return not self._belongs_to(config) and any(self.checkpoints.glob("[!.]*"))

    def remove_previous_job(self, config: RunConfig) -> None:
        """Remove the files of an earlier FineTuneJob that left neither a model nor a checkpoint, for example its history.

        Raises FineTuneError if a file can't be removed.
        """
        if not config.adopted or self._belongs_to(config) or not self.directory.is_dir():
            return
        if self.model.is_dir() or self.has_unfinished_run_of_other_job(config):
            return
        try:
            for left in self.directory.iterdir():
                if left.name in _RUN_FILES:
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        except OSError as error:
            raise self._write_error(error, "remove what an earlier job has left there") from None

    def _belongs_to(self, config: RunConfig) -> bool:
        try:
            return bool(config.job_uid) and json.loads(self._run.read_text()).get("uid") == config.job_uid
        except (OSError, ValueError):
            return False

    def _write_error(self, error: OSError, remedy: str) -> FineTuneError:
        return FineTuneError(
            Reason.CONFIGURATION_ERROR, f"the output directory {self.directory} can't be written: {error.strerror}; {remedy}"
        )

    def save_resolved(self, config: RunConfig, resolved: Resolved) -> None:
        """Store the commits, so that later attempts in this directory train the same model on the same data."""
        content = {**_owner(config), "digest": training_digest(config.spec), "resolved": resolved.to_wire()}
        content["spec"] = shareable_spec(config.spec)  # for the report and for commands; checks use the digest
        content["claims"] = dict(config.claims)  # for commands: they read from the same directories
        if config.spec.publish:
            content["repository"] = config.spec.publish.repository
        self._write_run(content)

    def record_data(self, contents: Sequence[str]) -> None:
        """Store what the data sets contain. Raises FineTuneError if that has changed since a checkpoint was saved."""
        try:
            before = json.loads(self._data.read_text())
        except (OSError, ValueError):
            before = None
        if before is not None and before != list(contents) and any(self.checkpoints.glob("[!.]*")):
            changed = [index for index, pair in enumerate(itertools.zip_longest(before, contents)) if pair[0] != pair[1]]
            fields = " and ".join(f"spec.datasets[{index}]" for index in changed)
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{fields}: its files have changed since this training began, and the training has used the old ones so far; "
                "restore the old files, or train under another name, with another output",
            )
        if before != list(contents):
            write_atomically(self._data, json.dumps(list(contents)), durable=True)

    def resolved(self) -> dict[str, Any] | None:
        """Return the commits that run.json has; None if it has none."""
        with contextlib.suppress(OSError, ValueError):
            resolved: dict[str, Any] | None = json.loads(self._run.read_text()).get("resolved")
            return resolved
        return None

    def _write_run(self, content: dict[str, Any]) -> None:
        """Write run.json durably. If it were empty after a crash of the node, every later attempt would fail."""
        write_atomically(self._run, json.dumps(content), durable=True)

    def finished_report(self) -> Report | None:
        """Return the report of a finished training; None if the training is not finished."""
        try:
            return Report.read(self.report.read_text()) if self.model.is_dir() else None
        except FileNotFoundError:
            return None

    def commit_model(self, written: pathlib.Path) -> None:
        """Sync a written model to the disk, then give it its final name. The report must not exist without the model."""
        for path in written.iterdir():
            sync(path)
        shutil.rmtree(self.model, ignore_errors=True)
        written.rename(self.model)
        sync(self.directory)

    def best_model(self, step: int) -> pathlib.Path:
        """Return the directory for a model that was the best so far in the evaluation after ``step`` steps."""
        return self.directory / "best" / f"step-{step}"

    def best_models(self) -> list[pathlib.Path]:
        """Return the directories of all best models."""
        return list((self.directory / "best").glob("step-*"))

    def files_to_sync(self, best: int | None) -> list[pathlib.Path]:
        """Return the files that must be on the disk before a checkpoint: the history, and the best model that it names."""
        files = [self.history] if self.history.exists() else []
        if best is not None:
            files += [*self.best_model(best).iterdir(), self.best_model(best), self.best_model(best).parent]
        return files

    def prune_best_models(self, known: Collection[int], before: int) -> None:
        """Delete best models of steps up to ``before`` that no checkpoint names any more. known: steps that checkpoints name."""
        for directory in self.best_models():
            step = int(directory.name.removeprefix("step-"))
            if step <= before and step not in known:
                shutil.rmtree(directory, ignore_errors=True)

    def append_history(self, lines: Sequence[str]) -> list[str]:
        """Append lines to the history, all or none. Return the lines that could not be written, for example on a full disk."""
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
        """Remove the entries after ``step``, because these steps will be repeated. Return the remaining entries."""
        if not self.history.exists():
            return []
        lines = self.history.read_text(errors="replace").splitlines()
        kept = [entry for line in lines if (entry := _parse_line(line)) is not None and entry["step"] <= step]
        if len(kept) < len(lines):
            write_atomically(self.history, "".join(json.dumps(entry) + "\n" for entry in kept), durable=True)
        return kept


def _parse_line(line: str) -> dict[str, Any] | None:
    """Return the entry of a line of the history; None for a line that was cut off."""
    with contextlib.suppress(json.JSONDecodeError):
        entry = json.loads(line)
        return entry if isinstance(entry, dict) and "step" in entry else None
    return None
