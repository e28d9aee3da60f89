"""Start a helper pod, wait until it runs, and delete it."""

import contextlib
from collections.abc import Callable, Iterator

from finetune_client.api import Api, Manifest
from finetune_client.errors import ClientError, ForbiddenError
from finetune_client.follow import Sleep
from finetune_client.records import EventRecord, PodRecord, read_event, read_pod

_START_TIMEOUT_SECONDS = 300.0
_POLL_SECONDS = 1.0
# Container states that waiting does not resolve.
_PERMANENT_ERRORS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"}
)

# Called while the pod does not run yet, with the pod and its warnings. Raises if waiting does not help.
Check = Callable[[PodRecord, list[EventRecord]], None]


@contextlib.contextmanager
def run_helper_pod(
    api: Api,
    namespace: str,
    manifest: Manifest,
    what: str,
    error: type[ClientError],
    sleep: Sleep,
    check: Check = lambda pod, warnings: None,
    advice: str = "",
) -> Iterator[str]:
    """Start a helper pod and yield its name. Delete the pod at the end, also after an error.

    what: how messages call the pod. error: raised if the pod does not start. advice: ends the message if the
    image can't be used.
    """
    created = api.create("pods", namespace, manifest)
    name, uid = created["metadata"]["name"], created["metadata"]["uid"]
    try:
        _wait_until_it_runs(api, namespace, name, what, error, sleep, check, advice)
        yield name
    finally:
        _delete(api, namespace, name, uid)


def delete_finished(api: Api, namespace: str, selector: str) -> None:
    """Delete the finished helper pods of earlier calls that ended before they could delete them."""
    for manifest in api.list("pods", namespace, labelSelector=selector):
        if read_pod(manifest).finished:
            _delete(api, namespace, manifest["metadata"]["name"], manifest["metadata"]["uid"])


def _delete(api: Api, namespace: str, name: str, uid: str) -> None:
    # If the deletion fails, the pod's deadline ends it, and Kubernetes deletes it with its owner.
    with contextlib.suppress(ClientError):
        api.delete("pods", namespace, name, uid, grace_seconds=0)


def _wait_until_it_runs(
    api: Api, namespace: str, name: str, what: str, error: type[ClientError], sleep: Sleep, check: Check, advice: str
) -> None:
    waited = 0.0
    while True:
        manifest = api.get("pods", namespace, name)
        pod = read_pod(manifest)
        if pod.running:
            return
        warnings = _read_warnings(api, namespace, manifest["metadata"]["uid"])
        why = pod.message or (warnings[-1].message if warnings else "")
        state = f"{pod.state}: {why}" if why else pod.state
        if pod.finished or pod.state in _PERMANENT_ERRORS:
            raise error(f"{what} can't start ({state}){advice if pod.state in _PERMANENT_ERRORS else ''}")
        check(pod, warnings)
        if waited >= _START_TIMEOUT_SECONDS:
            raise error(
                f"{what} has not started within {waited:.0f} s ({state}); "
                "a volume that only one node can mount may be in use on another node"
            )
        sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS


def _read_warnings(api: Api, namespace: str, uid: str) -> list[EventRecord]:
    """Return the Warning events of the pod, the earliest first; none if the user may not read events."""
    try:
        events = map(read_event, api.list("events", namespace, fieldSelector=f"involvedObject.uid={uid}"))
    except ForbiddenError:
        return []
    return sorted((event for event in events if event.type == "Warning"), key=lambda event: event.time)
