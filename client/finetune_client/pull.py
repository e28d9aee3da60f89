"""Fetch a finished model, or the record of a training, out of its volume: file by file, each verified.

Broken off, a transfer is taken up again where it ended.
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
import time
from collections.abc import Callable, Iterator, Sequence

from kubernetes.stream.ws_client import STDERR_CHANNEL, STDOUT_CHANNEL

from finetune_client.api import Api
from finetune_client.errors import ClientError, NotFoundError, PullError, UnreachableError
from finetune_client.follow import Sleep
from finetune_client.helper_pod import CONTAINER, LABEL_PULL, build_helper_pod, output_claim
from finetune_client.records import JobRecord, PodRecord, read_pod

_START_TIMEOUT_SECONDS = 300.0
_POLL_SECONDS = 1.0
# In a row, without a byte that came.
_TRIES = 5
_PIECE_BYTES = 1 << 20
# States of a pod that waiting does not mend.
_HOPELESS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"})

# Told of: bytes that are here, bytes in all, the file that comes.
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of the part. path: from the part's folder, with "/". size: in bytes."""

    path: str
    size: int


@dataclasses.dataclass(frozen=True)
class Part:
    """What can be fetched of an output. folder: where in it. files: these only; all that are there if it is empty.

    early: what is said of a job that goes on. missing: what the volume does not hold, and why.
    """

    folder: str
    files: tuple[str, ...]
    early: str
    missing: str


MODEL = Part(
    folder="model",
    files=(),
    early="it has no finished model yet",
    missing="no finished model: the job ended before it was written",
)
# What `finetune report` reads, and the page that a training which is through has left.
RECORD = Part(
    folder="",
    files=("run.json", "history.jsonl", "starts.jsonl", "evaluation.json", "report.json", "report.html"),
    early="the record of its training can be fetched once it has ended",
    missing="no record of a training: the job ended before it began to train",
)


def pull_part(
    api: Api,
    job: JobRecord,
    pods: Sequence[PodRecord],
    part: Part,
    directory: pathlib.Path,
    on_progress: Progress = lambda done, size, file: None,
    sleep: Sleep = time.sleep,
) -> None:
    """Fetch a part of the output of a job that has ended into a directory that is not there yet, or empty.

    pods: the job's own that are left. The files come into <directory>.partial, which becomes the directory when all are complete;
    broken off, the next call goes on with it. Raises PullError and other ClientErrors.
    """
    directory = directory.resolve()
    check_pullable(job, part, directory)
    try:
        _pull(api, job, pods, part, directory, on_progress, sleep)
    except OSError as error:
        raise PullError(
            f"{error.filename or directory} can't be written: {error.strerror or error}; what has come is kept"
        ) from error


def _pull(
    api: Api,
    job: JobRecord,
    pods: Sequence[PodRecord],
    part: Part,
    directory: pathlib.Path,
    on_progress: Progress,
    sleep: Sleep,
) -> None:
    last_pod = max((pod for pod in pods if pod.node), key=lambda pod: pod.created, default=None)
    _check_claim(api, job)
    _delete_leftovers(api, job)
    partial = directory.with_name(f"{directory.name}.partial")
    with _helper_pod(api, job, last_pod, sleep) as pod:
        source = _Source(api, job.namespace, pod, output_claim(job)[1], part, sleep)
        files = source.list()
        total, before = sum(file.size for file in files), 0
        for file in files:
            source.fetch(file, partial / file.path, functools.partial(_tell, on_progress, before, total, file.path))
            before += file.size
    _remove_others(partial, {partial / file.path for file in files})
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)


def _tell(on_progress: Progress, before: int, total: int, file: str, done: int) -> None:
    on_progress(before + done, total, file)


def check_pullable(job: JobRecord, part: Part, directory: pathlib.Path) -> None:
    """Raise PullError where it is too early for the part, or there is no room for it."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PullError(f"{directory} is there already and is not overwritten: remove it, or choose another directory")
    if not job.finished:
        raise PullError(f"{job.name} is {job.phase}: {part.early}; `kubectl finetune watch {job.name}{job.place}` waits for it")


def _check_claim(api: Api, job: JobRecord) -> None:
    claim, _ = output_claim(job)
    try:
        api.get("persistentvolumeclaims", job.namespace, claim)
    except NotFoundError:
        published = job.status.published
        where = f"; the model is at {published.url}" if published is not None else ""
        raise PullError(f"the volume of {job.name} (PersistentVolumeClaim {claim}) is gone{where}") from None


def _delete_leftovers(api: Api, job: JobRecord) -> None:
    """Pods of calls that died before they could clean up, once Kubernetes has ended them."""
    for manifest in api.list("pods", job.namespace, labelSelector=f"{LABEL_PULL}={job.name}"):
        if read_pod(manifest).finished:
            _delete_pod(api, job.namespace, manifest["metadata"]["name"], manifest["metadata"]["uid"])


def _delete_pod(api: Api, namespace: str, name: str, uid: str) -> None:
    # Where it can't be deleted, its deadline and its owner see to it.
    with contextlib.suppress(ClientError):
        api.delete("pods", namespace, name, uid, grace_seconds=0)


@contextlib.contextmanager
def _helper_pod(api: Api, job: JobRecord, last_pod: PodRecord | None, sleep: Sleep) -> Iterator[str]:
    """The name of a pod that runs and sees the volume; it is deleted whatever happens."""
    created = api.create("pods", job.namespace, build_helper_pod(job, last_pod))
    name, uid = created["metadata"]["name"], created["metadata"]["uid"]
    try:
        _wait_until_it_runs(api, job.namespace, name, sleep)
        yield name
    finally:
        _delete_pod(api, job.namespace, name, uid)


def _wait_until_it_runs(api: Api, namespace: str, name: str, sleep: Sleep) -> None:
    waited = 0.0
    while True:
        pod = read_pod(api.get("pods", namespace, name))
        if pod.running:
            return
        why = f"{pod.state}: {pod.message}" if pod.message else pod.state
        if pod.finished or pod.state in _HOPELESS:
            raise PullError(f"the pod that reads the volume can't start ({why})")
        if waited >= _START_TIMEOUT_SECONDS:
            raise PullError(
                f"the pod that reads the volume has not started within {waited:.0f} s ({why}); "
                "a volume that only one machine may use is perhaps in use on another one"
            )
        sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS


class _Source:
    """A part of the output in the helper pod. output: the directory of the output there."""

    def __init__(self, api: Api, namespace: str, pod: str, output: str, part: Part, sleep: Sleep) -> None:
        self._api = api
        self._namespace = namespace
        self._pod = pod
        self._folder = f"{output}/{part.folder}"
        self._part = part
        self._sleep = sleep
        self._program = importlib.resources.files(__package__).joinpath("pod_program.py").read_text(encoding="utf-8")

    def list(self) -> list[RemoteFile]:
        """The files of the part that are there; PullError if there are none."""
        for attempt in range(_TRIES):
            try:
                output = b"".join(piece for channel, piece in self._run("list", *self._part.files) if channel == STDOUT_CHANNEL)
                break
            except UnreachableError:
                if attempt == _TRIES - 1:
                    raise
                self._sleep(2.0**attempt)
            except PullError as error:
                if "no such folder" not in error.message:
                    raise
                raise PullError(f"the volume holds {self._part.missing}") from None
        files = [RemoteFile(**json.loads(line)) for line in output.splitlines()]
        for file in files:
            path = pathlib.PurePosixPath(file.path)
            if path.is_absolute() or ".." in path.parts:
                raise PullError(f"the volume holds a file of a name that leads elsewhere: {file.path!r}")
        if not files:
            raise PullError(f"the volume holds {self._part.missing}")
        return files

    def fetch(self, file: RemoteFile, target: pathlib.Path, on_bytes: Callable[[int], None]) -> None:
        """Bring a file here, whole and verified; what is there of it already is gone on with."""
        target.parent.mkdir(parents=True, exist_ok=True)
        anew = False
        failed = 0
        while True:
            had = target.stat().st_size if target.exists() else 0
            if had > file.size:
                target.unlink()
                continue
            try:
                expected = self._append(file, target, had, on_bytes)
            except UnreachableError as error:
                failed = failed + 1 if not target.exists() or target.stat().st_size == had else 0
                if failed == _TRIES:
                    raise UnreachableError(f"{error.message}; what has come is kept, the same command goes on with it") from error
                self._sleep(2.0**failed)
                continue
            if target.stat().st_size == file.size and _sha256(target) == expected:
                return
            target.unlink()
            if anew:
                raise PullError(f"{file.path} is not here as it is in the volume: the connection changes what it carries")
            anew = True  # what was there was of another job, or damaged

    def _append(self, file: RemoteFile, target: pathlib.Path, offset: int, on_bytes: Callable[[int], None]) -> str:
        """The rest of a file from a byte on; the hash that the whole has in the volume."""
        digest = b""
        with target.open("ab") as stream:
            for channel, piece in self._run("send", file.path, str(offset)):
                if channel == STDERR_CHANNEL:
                    digest += piece
                    continue
                stream.write(piece)
                on_bytes(stream.tell())
            stream.flush()
            os.fsync(stream.fileno())
            if stream.tell() < file.size or not digest.strip():
                raise UnreachableError(f"the transfer of {file.path} ended before its end")
        return digest.decode().strip()

    def _run(self, what: str, *arguments: str) -> Iterator[tuple[int, bytes]]:
        command = ["python3", "-c", self._program, what, self._folder, *arguments]
        return self._api.execute(self._namespace, self._pod, CONTAINER, command)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove_others(folder: pathlib.Path, wanted: set[pathlib.Path]) -> None:
    """What an earlier call left there that is not of this part."""
    needed = wanted | {parent for path in wanted for parent in path.parents}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path not in needed:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
