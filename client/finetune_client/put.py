"""Copy a file or a folder into a claim, through a helper pod. An interrupted transfer continues where it stopped."""

import contextlib
import dataclasses
import functools
import importlib.resources
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pydantic

from finetune_api import names
from finetune_api.spec.common import Claim
from finetune_client.api import Api, Manifest
from finetune_client.errors import CommandError, ForbiddenError, NotFoundError, NotInstalledError, PutError, UnreachableError
from finetune_client.follow import Sleep
from finetune_client.helper_pod import CONTAINER, LABEL_PUT, PUT_DIR, build_put_pod, put_label
from finetune_client.helper_pod_run import delete_finished, run_helper_pod
from finetune_client.local_files import LocalFile, list_files
from finetune_client.records import EventRecord, JobRecord, PodRecord, read_job, read_pod
from finetune_client.remote_command import RemoteCommand

_FRAME_BYTES = 64 << 10
# Bytes that are sent before the pod has confirmed them. The script confirms each MiB.
_WINDOW_BYTES = 4 << 20
# Consecutive tries without a confirmed byte.
_MAX_TRIES = 5
# Runs the script that comes first in standard input: an address with the whole script may be too long for a proxy.
_LOADER = "import sys; exec(sys.stdin.buffer.read(int(sys.argv.pop(1))))"

# Called with the bytes done, the bytes in all, and the current file.
TransferProgress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class NewClaim:
    """What to create if the claim does not exist. storage_class: None means the default class of the cluster."""

    size: str
    access_mode: str = "ReadWriteOnce"
    storage_class: str | None = None


@dataclasses.dataclass(frozen=True)
class PodOptions:
    """image, user: in place of those of the newest job in the namespace."""

    image: str | None = None
    user: int | None = None


DEFAULT_POD = PodOptions()


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where the files are now. path: in the claim. sent: in bytes, without what was there already."""

    claim: str
    path: str
    files: int
    sent: int


def parse_target(target: str, source: pathlib.Path) -> Claim:
    """Return claim and path of CLAIM[/PATH]. Without a path, or with one that ends in "/", the source keeps its name there."""
    claim, _, path = target.partition("/")
    if not path or path.endswith("/"):
        path += source.resolve().name
    try:
        return Claim(claim_name=claim, path=path)
    except pydantic.ValidationError as error:
        if error.errors()[0]["loc"] == ("path",):
            raise PutError(f"{path!r} is not a path in the claim: write names separated by /, without . and ..") from None
        raise PutError(f"{claim!r} is not the name of a claim: write CLAIM or CLAIM/PATH") from None


def put_files(
    api: Api,
    namespace: str,
    source: pathlib.Path,
    target: str,
    create: NewClaim | None,
    replace: bool,
    pod_options: PodOptions,
    on_progress: TransferProgress,
    sleep: Sleep,
) -> Placed:
    """Copy a file or a folder to CLAIM[/PATH]. Raises PutError and other ClientErrors.

    The files go to PATH.partial, which is renamed to PATH when all of them are complete and have the right SHA-256. create: the
    claim to create if it does not exist. replace: replace a PATH that exists and differs.
    """
    place = parse_target(target, source)
    try:
        files = list_files(source)
        claim = _find_claim(api, namespace, place.claim_name, create)
        request = _build_request(files, source.is_dir(), replace, on_progress)
        on_progress(0, sum(file.size for file in files), "starting a pod that writes to the claim")
        with _helper_pod(api, claim, pod_options, sleep) as pod:
            upload = _Upload(api, namespace, pod, str(place.path), files, request, on_progress)
            upload.run(sleep)
    except OSError as error:
        raise PutError(f"{error.filename or source} can't be read: {error.strerror or error}") from error
    return Placed(place.claim_name, str(place.path), len(files), upload.sent)


def _find_claim(api: Api, namespace: str, name: str, create: NewClaim | None) -> Manifest:
    try:
        return api.get("persistentvolumeclaims", namespace, name)
    except NotFoundError:
        if create is None:
            raise PutError(
                f"there is no claim {name} in namespace {namespace}: add --create --size 10Gi to create it with that size"
            ) from None
    spec: Manifest = {"accessModes": [create.access_mode], "resources": {"requests": {"storage": create.size}}}
    if create.storage_class is not None:
        spec["storageClassName"] = create.storage_class
    manifest = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
    return api.create("persistentvolumeclaims", namespace, manifest)


def _build_request(files: list[LocalFile], folder: bool, replace: bool, on_progress: TransferProgress) -> bytes:
    total, before, listed = sum(file.size for file in files), 0, []
    for file in files:

        def on_bytes(done: int, before: int = before, name: str = file.source.name) -> None:
            on_progress(before + done, total, f"reading {name}")

        listed.append({"path": file.path, "size": file.size, "sha256": file.sha256(on_bytes)})
        before += file.size
    return json.dumps({"folder": folder, "replace": replace, "files": listed}).encode() + b"\n"


@contextlib.contextmanager
def _helper_pod(api: Api, claim: Manifest, options: PodOptions, sleep: Sleep) -> Iterator[str]:
    namespace, name = claim["metadata"]["namespace"], claim["metadata"]["name"]
    delete_finished(api, namespace, f"{LABEL_PUT}={put_label(name)}")
    job, last_pod = _find_newest_job(api, namespace)
    users = _find_users(api, namespace, name)
    pod = build_put_pod(claim, job, last_pod, options.image, options.user, users[0].node if users else None)

    def check(pod: PodRecord, warnings: list[EventRecord]) -> None:
        if "ReadWriteOncePod" in pod.message or any(warning.reason == "FailedAttachVolume" for warning in warnings):
            for user in _find_users(api, namespace, name):
                if user.name != pod.name and (pod.node is None or user.node != pod.node):
                    raise PutError(
                        f"the claim {name} can't be mounted on two nodes at the same time, and pod {user.name} uses it on node "
                        f"{user.node}: run the command again when that pod has ended"
                    )

    what, advice = "the pod that writes to the claim", ": choose another image with --image"
    with run_helper_pod(api, namespace, pod, what, PutError, sleep, check, advice) as started:
        yield started


def _find_users(api: Api, namespace: str, claim: str) -> list[PodRecord]:
    """Return the pods on a node that mount the claim."""
    found = []
    for manifest in api.list("pods", namespace):
        volumes = manifest.get("spec", {}).get("volumes", [])
        claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in volumes}
        pod = read_pod(manifest)
        if claim in claims and pod.node and not pod.finished:
            found.append(pod)
    return found


def _find_newest_job(api: Api, namespace: str) -> tuple[JobRecord | None, PodRecord | None]:
    """Return the newest job that has started, and its last pod: their image can be pulled, and their settings are admitted."""
    try:
        jobs = [read_job(manifest) for manifest in api.list(names.PLURAL, namespace)]
    except (ForbiddenError, NotInstalledError):
        return None, None
    started = [job for job in jobs if job.spec is not None and job.status.resolved is not None and job.status.resolved.image]
    if not started:
        return None, None
    job = max(started, key=lambda job: job.created)
    pods = [read_pod(manifest) for manifest in api.list("pods", namespace, labelSelector=f"{names.LABEL_JOB}={job.name}")]
    return job, max(pods, key=lambda pod: pod.created, default=None)


def _read_answers(command: RemoteCommand) -> Iterator[dict[str, Any]]:
    for line in command.lines():
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PutError(answer["error"])
        yield answer


class _Upload:
    """Sends the files to the script in the helper pod. sent: the bytes that arrived, over all tries."""

    def __init__(
        self, api: Api, namespace: str, pod: str, path: str, files: list[LocalFile], request: bytes, on_progress: TransferProgress
    ) -> None:
        script = importlib.resources.files(__package__).joinpath("put_script.py").read_bytes()
        command = ["python3", "-c", _LOADER, str(len(script)), PUT_DIR, path]
        self._start: Callable[[], contextlib.AbstractContextManager[RemoteCommand]] = functools.partial(
            api.start_command, namespace, pod, CONTAINER, command, stdin=True
        )
        self._first = script + request
        self._files = files
        self._total = sum(file.size for file in files)
        self._on_progress = on_progress
        self.sent = 0

    def run(self, sleep: Sleep) -> None:
        """Send what is missing; after a broken connection, try again."""
        failed, repeated = 0, False
        while True:
            before = self.sent
            try:
                corrupt = self._try()
            except CommandError as error:
                if "executable file not found" in error.message:
                    raise PutError("the image of the helper pod has no python3: choose another one with --image") from error
                raise PutError(error.message) from error
            except UnreachableError as error:
                failed = 0 if self.sent > before else failed + 1
                if failed == _MAX_TRIES:
                    raise UnreachableError(
                        f"{error.message}; what has arrived is kept: run the same command again to continue"
                    ) from error
                sleep(2.0**failed)
                continue
            if not corrupt:
                return
            if repeated:
                name = corrupt[0] or self._files[0].source.name
                raise PutError(f"{name} arrives with another SHA-256: it changes while it is sent, or the connection corrupts it")
            repeated = True  # What an earlier call left was of another version of the file.

    def _try(self) -> list[str]:
        """Send what is missing. Return the files that arrived with another content."""
        with self._start() as command:
            answers = _read_answers(command)
            for start in range(0, len(self._first), _FRAME_BYTES):
                command.send(self._first[start : start + _FRAME_BYTES])
            first = next(answers)
            if "same" in first:
                return []
            present, sent, received = sum(first["have"]), 0, 0

            def confirm(answer: dict[str, Any], file: LocalFile) -> int:
                arrived: int = answer["received"]
                self.sent += arrived - received
                self._on_progress(present + arrived, self._total, file.source.name)
                return arrived

            for file, offset in zip(self._files, first["have"], strict=True):
                for chunk in file.read(offset, _FRAME_BYTES):
                    command.send(chunk)
                    sent += len(chunk)
                    while sent - received > _WINDOW_BYTES:
                        received = confirm(next(answers), file)
            while "received" in (answer := next(answers)):
                received = confirm(answer, self._files[-1])
            return list(answer.get("corrupt", ()))
