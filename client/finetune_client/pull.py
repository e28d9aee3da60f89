"""Download a finished model, or a training record, from its volume. Every file is verified.

An interrupted transfer continues where it stopped.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from kubernetes.stream.ws_client import STDERR_CHANNEL, STDOUT_CHANNEL

from finetune_client.api import Api
from finetune_client.artifacts import Artifact, kept_log
from finetune_client.errors import CommandError, NotFoundError, PullError, UnreachableError
from finetune_client.follow import Sleep
from finetune_client.helper_pod import CONTAINER, LABEL_PULL, build_helper_pod, output_claim
from finetune_client.helper_pod_run import delete_finished, run_helper_pod
from finetune_client.records import JobRecord, PodRecord

# Consecutive tries without a received byte.
_MAX_TRIES = 5

# Called with the bytes received, the bytes in all, and the current file.
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of an artifact. path: relative to the artifact's folder, with "/". size: in bytes."""

    path: str
    size: int


def pull_artifact(
    api: Api,
    job: JobRecord,
    pods: Sequence[PodRecord],
    artifact: Artifact,
    directory: pathlib.Path,
    on_progress: Progress = lambda done, size, file: None,
    sleep: Sleep = time.sleep,
) -> None:
    """Download an artifact of a finished job into a directory that does not exist yet or is empty.

    pods: the training pods that still exist. The files go to <directory>.partial, which is renamed to the directory when all are
    complete. After an interruption, the next call continues with it. Raises PullError and other ClientErrors.
    """
    directory = directory.resolve()
    check_pullable(job, artifact, directory)
    try:
        _pull(api, job, pods, artifact, directory, on_progress, sleep)
    except OSError as error:
        raise PullError(
            f"{error.filename or directory} can't be written: {error.strerror or error}; the data received so far is kept"
        ) from error


def read_log(api: Api, job: JobRecord, pods: Sequence[PodRecord], name: str, sleep: Sleep = time.sleep) -> list[str]:
    """Return the lines of a log that a deleted pod has left in the volume. Raises PullError and other ClientErrors."""
    _check_claim(api, job)
    with tempfile.TemporaryDirectory() as folder, _helper_pod(api, job, _last_pod(pods), sleep) as pod:
        source = _Source(api, job.namespace, pod, output_claim(job)[1], kept_log(name), sleep)
        [file] = source.list()
        target = pathlib.Path(folder, "log")
        source.fetch(file, target, lambda done: None)
        return target.read_text(encoding="utf-8", errors="replace").splitlines()


def _last_pod(pods: Sequence[PodRecord]) -> PodRecord | None:
    return max((pod for pod in pods if pod.node), key=lambda pod: pod.created, default=None)


def _pull(
    api: Api,
    job: JobRecord,
    pods: Sequence[PodRecord],
    artifact: Artifact,
    directory: pathlib.Path,
    on_progress: Progress,
    sleep: Sleep,
) -> None:
    _check_claim(api, job)
    delete_finished(api, job.namespace, f"{LABEL_PULL}={job.name}")
    partial = directory.with_name(f"{directory.name}.partial")
    with _helper_pod(api, job, _last_pod(pods), sleep) as pod:
        source = _Source(api, job.namespace, pod, output_claim(job)[1], artifact, sleep)
        files = source.list()
        total, before = sum(file.size for file in files), 0
        for file in files:
            on_bytes = functools.partial(_report_progress, on_progress, before, total, file.path)
            source.fetch(file, partial / file.path, on_bytes)
            before += file.size
    _remove_other_files(partial, {partial / file.path for file in files})
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)


def _report_progress(on_progress: Progress, before: int, total: int, file: str, done: int) -> None:
    on_progress(before + done, total, file)


def check_pullable(job: JobRecord, artifact: Artifact, directory: pathlib.Path) -> None:
    """Raise PullError if the job is unfinished, or if the directory holds anything."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PullError(f"{directory} exists already and is not overwritten: remove it, or choose another directory")
    if not job.finished:
        raise PullError(
            f"{job.name} is {job.phase}: {artifact.too_early}; `kubectl finetune watch {job.name}{job.flags}` waits for it"
        )


def _check_claim(api: Api, job: JobRecord) -> None:
    claim, _ = output_claim(job)
    try:
        api.get("persistentvolumeclaims", job.namespace, claim)
    except NotFoundError:
        published = job.status.published
        where = f"; the model is at {published.url}" if published is not None else ""
        raise PullError(f"the volume of {job.name} (PersistentVolumeClaim {claim}) is gone{where}") from None


@contextlib.contextmanager
def _helper_pod(api: Api, job: JobRecord, last_pod: PodRecord | None, sleep: Sleep) -> Iterator[str]:
    pod = build_helper_pod(job, last_pod)
    with run_helper_pod(api, job.namespace, pod, "the pod that reads the volume", PullError, sleep) as name:
        yield name


class _Source:
    """Reads the files of an artifact through the helper pod. output: the directory of the output in the pod."""

    def __init__(self, api: Api, namespace: str, pod: str, output: str, artifact: Artifact, sleep: Sleep) -> None:
        self._api = api
        self._namespace = namespace
        self._pod = pod
        self._folder = f"{output}/{artifact.folder}"
        self._artifact = artifact
        self._sleep = sleep
        self._script = importlib.resources.files(__package__).joinpath("helper_pod_script.py").read_text(encoding="utf-8")

    def list(self) -> list[RemoteFile]:
        """Return the files of the artifact that exist. Raise PullError if there are none."""
        for attempt in range(_MAX_TRIES):
            try:
                frames = self._run("list", *self._artifact.files)
                output = b"".join(content for channel, content in frames if channel == STDOUT_CHANNEL)
                break
            except UnreachableError:
                if attempt == _MAX_TRIES - 1:
                    raise
                self._sleep(2.0**attempt)
            except CommandError as error:
                if "no such folder" not in error.message:
                    raise
                raise PullError(f"the volume holds {self._artifact.missing}") from None
        files = [RemoteFile(**json.loads(line)) for line in output.splitlines()]
        for file in files:
            path = pathlib.PurePosixPath(file.path)
            if path.is_absolute() or ".." in path.parts:
                raise PullError(f"the volume holds a file whose path leads out of the directory: {file.path!r}")
        if not files:
            raise PullError(f"the volume holds {self._artifact.missing}")
        return files

    def fetch(self, file: RemoteFile, target: pathlib.Path, on_bytes: Callable[[int], None]) -> None:
        """Download and verify a file; continue with the bytes that are already in the target."""
        target.parent.mkdir(parents=True, exist_ok=True)
        repeated = False
        failed = 0
        while True:
            present = target.stat().st_size if target.exists() else 0
            if present > file.size:
                target.unlink()
                continue
            try:
                expected = self._append(file, target, present, on_bytes)
            except UnreachableError as error:
                failed = failed + 1 if not target.exists() or target.stat().st_size == present else 0
                if failed == _MAX_TRIES:
                    raise UnreachableError(
                        f"{error.message}; the data received so far is kept: run the same command again to continue"
                    ) from error
                self._sleep(2.0**failed)
                continue
            if target.stat().st_size == file.size and _sha256(target) == expected:
                return
            target.unlink()
            if repeated:
                raise PullError(f"{file.path} differs from the file in the volume: the connection corrupts the data")
            repeated = True  # The bytes in the target were corrupt, or from another job.

    def _append(self, file: RemoteFile, target: pathlib.Path, offset: int, on_bytes: Callable[[int], None]) -> str:
        """Append the bytes from the offset on to the target; return the SHA-256 of the whole file in the volume."""
        digest = b""
        with target.open("ab") as stream:
            for channel, content in self._run("send", file.path, str(offset)):
                if channel == STDERR_CHANNEL:
                    digest += content
                    continue
                stream.write(content)
                on_bytes(stream.tell())
            stream.flush()
            os.fsync(stream.fileno())
            if stream.tell() < file.size or not digest.strip():
                raise UnreachableError(f"the transfer of {file.path} ended early")
        return digest.decode().strip()

    def _run(self, subcommand: str, *arguments: str) -> Iterator[tuple[int, bytes]]:
        command = ["python3", "-c", self._script, subcommand, self._folder, *arguments]
        return self._api.execute(self._namespace, self._pod, CONTAINER, command)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove_other_files(folder: pathlib.Path, wanted: set[pathlib.Path]) -> None:
    """Remove the files of earlier calls that do not belong to this artifact."""
    needed = wanted | {parent for path in wanted for parent in path.parents}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path not in needed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
