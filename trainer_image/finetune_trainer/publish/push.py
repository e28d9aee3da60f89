"""The push of a model to the Hub: the finished one, and each best one on the way there.

A push can be done again: what is there already is not sent a second time, and a commit that was made, but whose answer was lost,
is found and not made twice.
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

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Published
from finetune_trainer.hub import client as hub
from finetune_trainer.publish.upload_filter import is_weights, shareable_files

log = logging.getLogger(__name__)

_ENV_DISABLE_XET = "HF_HUB_DISABLE_XET"
_HUB_WITH_XET = "https://huggingface.co"
_LINKED = ".push-"  # directories beside the best models


def push(directory: pathlib.Path, spec: FineTuneJobSpec, name: str, message: str | None = None) -> Published:
    """Push the model in a directory to where the spec says. message: of the commit.

    Raises FineTuneError with the command that does it later; the model stays where it is.
    """
    assert spec.publish
    try:
        return _upload_for(directory, spec, message or f"Fine-tuned by {name}")
    except FineTuneError as error:
        command = f"finetune push {shlex.quote(str(directory))} --to {spec.publish.repository}"
        raise FineTuneError(
            Reason.HUB_PUSH_FAILED, f"{error.message.rstrip('.')}; the model is kept, and this pushes it later: {command}"
        ) from None


def _upload_for(directory: pathlib.Path, spec: FineTuneJobSpec, message: str) -> Published:
    assert spec.publish
    return upload(directory, spec.publish.repository, spec.publish.visibility == "Private", message, "spec.publish")


def upload(directory: pathlib.Path, repository: str, private: bool, message: str, field: str) -> Published:
    """Push the model in a directory; the repository is created if it is not there, private or not.

    field: what to name in an error, see hub.explained. Raises FineTuneError.
    """
    api = HfApi()
    files = shareable_files(directory, repository)
    if not sys.stderr.isatty():
        disable_progress_bars()
    _choose_protocol(api.endpoint)

    def once() -> str:
        hub.ensure_repository(api, repository, private)
        return _commit(api, repository, files, message)

    with hub.explained(field, repository, Reason.HUB_PUSH_FAILED):
        try:
            commit = _by_either_protocol(once)
        except (OSError, RuntimeError, ValueError) as error:
            if hub.hub_error(error):
                raise
            said = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise FineTuneError(Reason.HUB_PUSH_FAILED, f"{field}: the push to {repository!r} failed: {said}") from None
    return Published(url=f"{api.endpoint}/{repository}", commit=commit)


def _commit(api: HfApi, repository: str, files: Mapping[str, pathlib.Path | bytes], message: str) -> str:
    """Upload and commit; returns the commit. Raises what the client raises.

    Only on the commit that was the newest at the beginning: had an earlier try made its commit after all, this one is refused,
    and the next one finds nothing left to change. Weights of an earlier model that the new one lacks are deleted: they would be
    loaded with it.
    """
    info = api.model_info(repository)
    there = [sibling.rfilename for sibling in info.siblings or []]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path_in_repo=name) for name in there if is_weights(name) and name not in files
    ]
    operations += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    commit = api.create_commit(repository, operations, commit_message=message, parent_commit=info.sha)
    return commit.oid


def _by_either_protocol(once: Callable[[], str]) -> str:
    """By Xet where it is on, and by LFS when that fails for a reason of its own: its client gives no more than a sentence."""
    try:
        return hub.patiently(once)
    except (RuntimeError, OSError) as error:
        if hub.hub_error(error) or constants.HF_HUB_DISABLE_XET:
            raise
        log.warning("the upload by Xet failed: trying LFS")
    constants.HF_HUB_DISABLE_XET = True
    return hub.patiently(once)


def _choose_protocol(endpoint: str) -> None:
    """By LFS where the Hub is another than Hugging Face's own: Xet is usual only there, and its client never falls back."""
    if endpoint.rstrip("/") != _HUB_WITH_XET and _ENV_DISABLE_XET not in os.environ:
        constants.HF_HUB_DISABLE_XET = True


class BestPusher:
    """Pushes each best model in the background; the training neither waits for it nor fails by it.

    One upload at a time; of those that wait, only the newest is pushed. ``failures`` counts pushes that did not come through.
    failed: called at each of them.
    """

    def __init__(self, spec: FineTuneJobSpec, name: str, failed: Callable[[], None] = lambda: None) -> None:
        self.failures = 0
        self._spec, self._name, self._failed = spec, name, failed
        self._waiting: tuple[pathlib.Path, str] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, directory: pathlib.Path, step: int, metrics: Mapping[str, float]) -> None:
        """Push the model in a directory, which may be renamed or removed as soon as this returns (but no file of it rewritten).

        metrics: figures of its evaluation, for the commit's message.
        """
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        if self._thread is None:
            for left in directory.parent.glob(f"{_LINKED}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        try:
            kept = _linked(directory, directory.parent / f"{_LINKED}{step}")
        except OSError as error:
            self._fail(step, str(error))
            return
        with self._changed:
            self._drop_waiting()
            self._waiting = kept, f"Step {step} of {self._name}: {figures}"
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="push-best", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout_seconds: float = 60.0) -> None:
        """Take nothing more; push what was taken, but for no longer than this."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                log.warning("the push of the best model so far was not through after %.0f s", timeout_seconds)
        with self._changed:
            self._drop_waiting()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._waiting is None:
                    return
                (directory, message), self._waiting = self._waiting, None
            try:
                published = _upload_for(directory, self._spec, message)
                log.info("pushed the best model so far, commit %s", published.commit)
            except Exception as error:  # whatever it is, the training goes on
                self._fail(message, str(error))
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    def _fail(self, what: object, why: str) -> None:
        self.failures += 1
        self._failed()
        log.warning("the best model so far (%s) was not pushed, the training goes on: %s", what, why)

    def _drop_waiting(self) -> None:
        if self._waiting is not None:
            shutil.rmtree(self._waiting[0], ignore_errors=True)
            self._waiting = None


def _linked(directory: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """The files once more under another name, without copying where the file system can link."""
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
