"""Pushes models to the Hub: the finished model, and each new best model during the training.

A push is idempotent. Files that the Hub already has are not sent again. A commit whose answer was lost is found and not made
twice.
"""

import contextlib
import logging
import os
import pathlib
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Published
from finetune_trainer.hub.client import ensure_repository, explain_errors, hub_error, retry
from finetune_trainer.publish.upload_filter import is_weights, shareable_files

log = logging.getLogger(__name__)

_ENV_DISABLE_XET = "HF_HUB_DISABLE_XET"
_HUB_WITH_XET = "https://huggingface.co"
_LINKS_PREFIX = ".push-"  # prefix of temporary directories next to the best models


def push(
    directory: pathlib.Path, spec: FineTuneJobSpec, name: str, message: str | None = None, namespace: str = "default"
) -> Published:
    """Push the model in a directory to the repository in the spec. name, namespace: of the job. message: commit message.

    Raises FineTuneError with a command that pushes the model later. The model stays in the directory.
    """
    assert spec.publish
    try:
        return _upload_for(directory, spec, message or f"Fine-tuned by {name}")
    except FineTuneError as error:
        command = _command_for_later(directory, spec.publish.repository, name, namespace)
        raise FineTuneError(
            Reason.HUB_PUSH_FAILED, f"{error.message.rstrip('.')}; the model is kept; to push it later, run: {command}"
        ) from None


def _command_for_later(directory: pathlib.Path, repository: str, name: str, namespace: str) -> str:
    """Return the command for a shell outside of the pod, where the directories of the pod do not exist."""
    if directory.is_relative_to(names.OUTPUT_DIR):
        return f"kubectl finetune push {name} --namespace {namespace}"
    return f"finetune push {shlex.quote(str(directory))} --to {repository}"


def _upload_for(directory: pathlib.Path, spec: FineTuneJobSpec, message: str) -> Published:
    assert spec.publish
    return upload(directory, spec.publish.repository, spec.publish.visibility == "Private", message, "spec.publish")


def upload(directory: pathlib.Path, repository: str, private: bool, message: str, field: str) -> Published:
    """Push the model in a directory. Create the repository if it does not exist. Raise FineTuneError.

    private: visibility of a new repository. field: for errors, see explain_errors().
    """
    api = HfApi()
    files = shareable_files(directory, repository)
    if not sys.stderr.isatty():
        disable_progress_bars()
    _choose_protocol(api.endpoint)

    def push_once() -> str:
        ensure_repository(api, repository, private)
        return _commit(api, repository, files, message)

    with explain_errors(field, repository, Reason.HUB_PUSH_FAILED):
        try:
            commit = _with_protocol_fallback(push_once)
        except (OSError, RuntimeError, ValueError) as error:
            if hub_error(error):
                raise
            detail = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise FineTuneError(Reason.HUB_PUSH_FAILED, f"{field}: the push to {repository!r} failed: {detail}") from None
    return Published(url=f"{api.endpoint}/{repository}", commit=commit)


def _commit(api: HfApi, repository: str, files: Mapping[str, pathlib.Path | bytes], message: str) -> str:
    """Upload the files and commit them. Return the commit. Raise the client's errors.

    The parent must be the newest commit at the beginning. If an earlier attempt did make its commit, the Hub refuses this one,
    and the next attempt finds nothing to change. Weights of an earlier model that the new model lacks are deleted, because they
    would be loaded with it.
    """
    info = api.model_info(repository)
    there = [sibling.rfilename for sibling in info.siblings or []]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path_in_repo=name) for name in there if is_weights(name) and name not in files
    ]
    operations += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    commit = api.create_commit(repository, operations, commit_message=message, parent_commit=info.sha)
    return commit.oid


def _with_protocol_fallback(push_once: Callable[[], str]) -> str:
    """Push by Xet if it is enabled. If Xet itself fails, push by LFS. The Xet client raises general errors."""
    try:
        return retry(push_once)
    except (RuntimeError, OSError) as error:
        if hub_error(error) or constants.HF_HUB_DISABLE_XET:
            raise
        log.warning("the upload by Xet failed: trying LFS")
    constants.HF_HUB_DISABLE_XET = True
    return retry(push_once)


def _choose_protocol(endpoint: str) -> None:
    """Use LFS unless the Hub is Hugging Face's own. Other Hubs rarely support Xet, and its client never falls back."""
    if endpoint.rstrip("/") != _HUB_WITH_XET and _ENV_DISABLE_XET not in os.environ:
        constants.HF_HUB_DISABLE_XET = True


class BestPusher:
    """Pushes each best model in the background. The training does not wait for the push, and continues if the push fails.

    There is one upload at a time. Of the waiting models, only the newest is pushed. ``failures`` counts failed pushes.
    on_failure: called after each of them.
    """

    def __init__(self, spec: FineTuneJobSpec, name: str, on_failure: Callable[[], None] = lambda: None) -> None:
        self.failures = 0
        self._spec, self._name, self._on_failure = spec, name, on_failure
        self._pending: tuple[pathlib.Path, str] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, directory: pathlib.Path, step: int, metrics: Mapping[str, float]) -> None:
        """Push the model in a directory. Afterwards the directory may be renamed or removed, but its files must not be rewritten.

        metrics: metrics of its evaluation, for the commit message.
        """
        shown_metrics = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        if self._thread is None:
            for leftover in directory.parent.glob(f"{_LINKS_PREFIX}*"):  # of a killed process
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            kept = _hardlink_files(directory, directory.parent / f"{_LINKS_PREFIX}{step}")
        except OSError as error:
            self._fail(step, str(error))
            return
        with self._changed:
            self._discard_pending()
            self._pending = kept, f"Step {step} of {self._name}: {shown_metrics}"
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="push-best", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout_seconds: float = 60.0) -> None:
        """Accept no more models. Push the waiting one, but wait at most ``timeout_seconds``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                log.warning("the push of the best model so far did not finish within %.0f s", timeout_seconds)
        with self._changed:
            self._discard_pending()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._pending)
                if self._pending is None:
                    return
                (directory, message), self._pending = self._pending, None
            try:
                published = _upload_for(directory, self._spec, message)
                log.info("pushed the best model so far, commit %s", published.commit)
            except Exception as error:  # no error may stop the training
                self._fail(message, str(error))
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    def _fail(self, what: object, why: str) -> None:
        self.failures += 1
        self._on_failure()
        log.warning("the best model so far (%s) was not pushed, the training goes on: %s", what, why)

    def _discard_pending(self) -> None:
        if self._pending is not None:
            shutil.rmtree(self._pending[0], ignore_errors=True)
            self._pending = None


def _hardlink_files(directory: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Hard-link the files into another directory. Copy them if the file system has no hard links."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in directory.iterdir():
        if path.is_file():
            try:
                os.link(path, target / path.name)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(path, target / path.name)
    return target
