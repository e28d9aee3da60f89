"""Tries an installation out: `helm test` runs ``python -m finetune_operator.smoke``, which trains a tiny model.

A volume, a pod of the trainer image that writes model and data to it, a FineTuneJob on the CPU that trains on them for a few
steps: no Hub, no network, no GPU. What happens is printed line by line; at the end everything is deleted again.
"""

import argparse
import asyncio
import contextlib
import json
import pathlib
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from finetune_api import names
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import Manifest
from finetune_operator.site import Site, read_site

# Says of an object that a smoke test made it: nothing else is ever deleted.
_LABEL = f"{names.GROUP}/smoke-test"
_MOUNT_PATH = "/smoke"
_TRAINING = {"maxSteps": 3, "globalBatchSize": 8, "maxTokens": 16}
_POLL_SECONDS = 1.0
# For the pods of deleted objects to end; what is still there then is only told.
_CLEAN_UP_SECONDS = 60.0
# Reverse of the order of creation. A claim goes when no pod uses it any more.
_KINDS = ("FineTuneJob", "Pod", "PersistentVolumeClaim")


class SmokeTestError(Exception):
    """The installation does not work; the message says what was seen last."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test; 0 if the job succeeded."""
    return asyncio.run(_main(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_operator.smoke", description=__doc__)
    parser.add_argument("--namespace", required=True, help="where the operator runs FineTuneJobs")
    parser.add_argument("--name", required=True, help="of the volume, the pod and the FineTuneJob")
    parser.add_argument("--site-file", type=pathlib.Path, required=True, help="the operator's defaults for training pods")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until it gives up")
    parser.add_argument("--volume-size", default="1Gi")
    parser.add_argument("--storage-class", default="", help="the cluster's default if empty")
    parser.add_argument("--resources", type=json.loads, default={}, help="JSON: what the pods ask for")
    return parser


async def _main(options: argparse.Namespace) -> int:
    site = read_site(options.site_file, "")
    api = await Api.connect()
    test = _SmokeTest(api, options.namespace, options.name)
    work = asyncio.ensure_future(test.run(options, site))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        await asyncio.wait_for(work, options.timeout)
    except TimeoutError:
        _say(f"gave up after {options.timeout:g} s; the last that was seen: {test.last_seen or 'nothing'}")
    except asyncio.CancelledError:
        _say("asked to stop")
    except (SmokeTestError, ApiError) as error:
        _say(str(error))
    else:
        return 0
    finally:
        await test.clean_up()
        await api.close()
    return 1


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


class _SmokeTest:
    """One run in one namespace. ``last_seen``: the newest line about an object that is waited for."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self.last_seen = ""

    async def run(self, options: argparse.Namespace, site: Site) -> None:
        """Raise SmokeTestError where the installation does not do what it should."""
        await self.clean_up()  # what an earlier run left that was killed
        started = time.monotonic()
        await self._create("PersistentVolumeClaim", build_claim(options.volume_size, options.storage_class))
        await self._create("Pod", build_writer(self._name, site, options.resources))
        await self._wait_for("Pod", describe_pod, {"Succeeded"}, {"Failed"})
        await self._create("FineTuneJob", build_job(self._name, options.resources))
        await self._wait_for("FineTuneJob", describe_job, {"Succeeded"}, {"Failed"})
        _say(f"the operator trained a tiny model in {time.monotonic() - started:.0f} s")

    async def clean_up(self) -> None:
        """Delete what this test made, and wait until it is gone."""
        end = time.monotonic() + _CLEAN_UP_SECONDS
        for kind in _KINDS:
            with contextlib.suppress(ApiError):  # said below, if it means that something stays
                await self._delete(kind, end)
            found = None
            with contextlib.suppress(ApiError):
                found = await self._find(kind)
            if found is not None:
                _say(f"{kind} {self._namespace}/{self._name} is still there; delete it by hand")

    async def _delete(self, kind: str, end: float) -> None:
        while (found := await self._find(kind)) is not None and time.monotonic() < end:
            if "deletionTimestamp" not in found["metadata"]:
                await self._api.delete(kind, self._namespace, self._name, found["metadata"]["uid"])
            await asyncio.sleep(_POLL_SECONDS)

    async def _find(self, kind: str) -> Manifest | None:
        """The test's object of that kind; one of that name that the test did not make is none."""
        found = await self._api.get(kind, self._namespace, self._name)
        return found if found is not None and _LABEL in (found["metadata"].get("labels") or {}) else None

    async def _create(self, kind: str, manifest: Manifest) -> None:
        metadata = {"name": self._name, "namespace": self._namespace, "labels": {_LABEL: "true"}}
        try:
            await self._api.create(kind, {**manifest, "metadata": metadata})
        except ApiError as error:
            raise SmokeTestError(f"{kind} {self._namespace}/{self._name} can't be created: {error.message or error}") from error
        _say(f"{kind} {self._namespace}/{self._name} created")

    async def _wait_for(self, kind: str, describe: Callable[[Manifest], str], good: set[str], bad: set[str]) -> None:
        """Poll until the phase is a good one; print what ``describe`` says, each line once: some come again and again."""
        said: set[str] = set()
        while True:
            found = await _retried(lambda: self._api.get(kind, self._namespace, self._name))
            if found is None:
                raise SmokeTestError(f"somebody deleted the {kind} {self._namespace}/{self._name}")
            phase = (found.get("status") or {}).get("phase")
            self.last_seen = f"{kind}: {describe(found)}"
            if self.last_seen not in said:
                said.add(self.last_seen)
                _say(self.last_seen)
            if phase in good:
                return
            if phase in bad:
                raise SmokeTestError(f"the {kind} failed")
            await asyncio.sleep(_POLL_SECONDS)


async def _retried(request: Callable[[], Awaitable[Manifest | None]]) -> Manifest | None:
    """What the API server answers, also where it is away for a moment; the test's own time-out ends this."""
    while True:
        try:
            return await request()
        except ApiError as error:
            if 400 <= error.code < 500 and error.code != 429:
                raise
        await asyncio.sleep(_POLL_SECONDS)


def build_claim(size: str, storage_class: str) -> Manifest:
    """The volume for model, data and output; pods use it one after the other."""
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec}


def build_writer(claim: str, site: Site, resources: dict[str, Any]) -> Manifest:
    """The pod that writes model and data: placed and restricted like a training pod, so that the volume is where that goes."""
    container = {
        "name": "writer",
        "image": site.trainer_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["tini", "--", "python", "-m", "finetune_trainer.commands.smoke", _MOUNT_PATH],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "HF_HOME", "value": "/tmp/huggingface"}],  # noqa: S108
        "resources": resources,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "smoke", "mountPath": _MOUNT_PATH}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **site.security_context.to_wire(),
        },
        "imagePullSecrets": [secret.to_wire() for secret in site.image_pull_secrets],
        "nodeSelector": site.node_selector,
        "tolerations": [toleration.to_wire() for toleration in site.tolerations],
        "containers": [container],
        "volumes": [{"name": "smoke", "persistentVolumeClaim": {"claimName": claim}}, {"name": "tmp", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "spec": spec}


def build_job(claim: str, resources: dict[str, Any]) -> Manifest:
    """A FineTuneJob that reads from the claim and writes to it."""
    data = {"claimName": claim, "path": "data/train.csv", "evalPath": "data/eval.csv"}
    spec: dict[str, Any] = {
        "task": "text-classification",
        "model": {"claim": {"claimName": claim, "path": "model"}},
        "datasets": [{"claim": data}],
        "training": _TRAINING,
        "output": {"claim": {"claimName": claim, "path": "output"}},
        "recovery": {"maxRestarts": 0},
        "pod": {"terminationGracePeriodSeconds": 5, **({"resources": resources} if resources else {})},
    }
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "spec": spec}


def describe_pod(pod: Manifest) -> str:
    """Phase of a pod and, where it waits or failed, why."""
    status = pod.get("status") or {}
    reasons = [
        str(condition.get("message", ""))
        for condition in status.get("conditions") or ()
        if condition["type"] == "PodScheduled" and condition["status"] == "False"
    ]
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        seen = state.get("waiting") or (state.get("terminated") if status.get("phase") == "Failed" else None) or {}
        reasons += [str(seen[key]) for key in ("reason", "message") if seen.get(key)]
    return ": ".join([status.get("phase") or "Pending", *reasons])


def describe_job(job: Manifest) -> str:
    """Phase and message of a FineTuneJob and, where it failed, what to do about it."""
    status = job.get("status") or {}
    if not status:
        return "no operator has seen it yet"
    failure = status.get("failure") or {}
    message = status.get("message") or status.get("reason") or ""
    parts = [status.get("phase"), message, *(text for text in (failure.get("message"), failure.get("hint")) if text != message)]
    return ": ".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())
