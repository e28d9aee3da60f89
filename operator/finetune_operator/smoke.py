"""Tests an installation: `helm test` runs ``python -m finetune_operator.smoke``, which trains a tiny model.

It creates a volume, a pod of the trainer image that writes model and data to the volume, and a FineTuneJob that trains on them
for a few steps. It needs no Hub, no network and no GPU. It prints each change, and deletes everything at the end.
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
from finetune_operator.defaults import OperatorDefaults, read_defaults
from finetune_operator.observed import Manifest

# A smoke test gives this label to each object that it creates, and deletes only objects with it.
_LABEL = f"{names.GROUP}/smoke-test"
_MOUNT_PATH = "/smoke"
_TRAINING = {"maxSteps": 3, "globalBatchSize": 8, "maxTokens": 16}
_POLL_SECONDS = 1.0
_PROBE_SECONDS = 2.0
# A pod of the trainer needs less time than this to listen.
_REFUSED_ATTEMPTS = 10
# How long the test waits for deleted objects to disappear. It only reports objects that remain.
_CLEAN_UP_SECONDS = 60.0
# The order of deletion. It is the reverse of the order of creation. The API server deletes a claim when no pod uses it any more.
_KINDS = ("FineTuneJob", "Pod", "PersistentVolumeClaim")


class SmokeTestError(Exception):
    """The installation does not work. The message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test. Return 0 if the job succeeded."""
    return asyncio.run(_main(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_operator.smoke", description=__doc__)
    parser.add_argument("--namespace", required=True, help="where the operator runs FineTuneJobs")
    parser.add_argument("--name", required=True, help="name of the volume, the pod and the FineTuneJob")
    parser.add_argument("--site-file", type=pathlib.Path, required=True, help="the operator's defaults for training pods")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until the test gives up")
    parser.add_argument("--volume-size", default="1Gi")
    parser.add_argument("--storage-class", default="", help="of the volume; the cluster's default if empty")
    parser.add_argument("--resources", type=json.loads, default={}, help="resources of the pods, as JSON")
    return parser


async def _main(options: argparse.Namespace) -> int:
    defaults = read_defaults(options.site_file, "")
    api = await Api.connect()
    test = _SmokeTest(api, options.namespace, options.name)
    work = asyncio.ensure_future(test.run(options, defaults))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    try:
        await asyncio.wait_for(work, options.timeout)
    except TimeoutError:
        _print(f"gave up after {options.timeout:g} s; last observed: {test.last_seen or 'nothing'}")
    except asyncio.CancelledError:
        _print("stopped by a signal")
    except (SmokeTestError, ApiError) as error:
        _print(str(error))
    else:
        return 0
    finally:
        await test.clean_up()
        await api.close()
    return 1


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


class _SmokeTest:
    """One run in one namespace. ``last_seen``: the last line about the object that the test waits for."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self.last_seen = ""

    async def run(self, options: argparse.Namespace, defaults: OperatorDefaults) -> None:
        """Run the test. Raise SmokeTestError if the installation does not work."""
        await self.clean_up()  # an earlier run may have been killed
        started = time.monotonic()
        await self._create("PersistentVolumeClaim", build_claim(options.volume_size, options.storage_class))
        await self._create("Pod", build_writer(self._name, defaults, options.resources))
        await self._wait_for("Pod", describe_pod, {"Succeeded"}, {"Failed"})
        await self._create("FineTuneJob", build_job(self._name, options.resources))
        attempts: list[str] = []
        probing = asyncio.ensure_future(self._probe(attempts))
        try:
            await self._wait_for("FineTuneJob", describe_job, {"Succeeded"}, {"Failed"})
        finally:
            probing.cancel()
        _print(describe_isolation(attempts, defaults.network_policy.enabled))
        _print(f"the operator trained a tiny model in {time.monotonic() - started:.0f} s")

    async def _probe(self, attempts: list[str]) -> None:
        """Connect from this pod to the training pod, again and again. Outcomes: reached, timeout, or another error."""
        host = f"{names.attempt_name(self._name, 1)}-0.{names.service_name(self._name)}.{self._namespace}.svc"
        while "reached" not in attempts:
            await asyncio.sleep(_POLL_SECONDS)
            # Not before the pod has an address: a DNS server remembers for a while that there was none.
            if not self.last_seen.startswith(("FineTuneJob: Initializing", "FineTuneJob: Running")):
                continue
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, names.PORT_TELEMETRY), _PROBE_SECONDS)
                writer.close()
                attempts.append("reached")
            except TimeoutError:
                attempts.append("timeout")
            except OSError as error:  # the pod does not listen yet
                attempts.append(type(error).__name__)

    async def clean_up(self) -> None:
        """Delete what this test created, and wait until it is gone."""
        end = time.monotonic() + _CLEAN_UP_SECONDS
        for kind in _KINDS:
            with contextlib.suppress(ApiError):  # an object that remains is reported below
                await self._delete(kind, end)
            found = None
            with contextlib.suppress(ApiError):
                found = await self._find(kind)
            if found is not None:
                _print(f"{kind} {self._namespace}/{self._name} still exists; delete it by hand")

    async def _delete(self, kind: str, end: float) -> None:
        while (found := await self._find(kind)) is not None and time.monotonic() < end:
            if "deletionTimestamp" not in found["metadata"]:
                await self._api.delete(kind, self._namespace, self._name, found["metadata"]["uid"])
            await asyncio.sleep(_POLL_SECONDS)

    async def _find(self, kind: str) -> Manifest | None:
        """Return the test's object of that kind. Ignore an object of that name that the test did not create."""
        found = await self._api.get(kind, self._namespace, self._name)
        return found if found is not None and _LABEL in (found["metadata"].get("labels") or {}) else None

    async def _create(self, kind: str, manifest: Manifest) -> None:
        metadata = {"name": self._name, "namespace": self._namespace, "labels": {_LABEL: "true"}}
        try:
            await self._api.create(kind, {**manifest, "metadata": metadata})
        except ApiError as error:
            raise SmokeTestError(f"{kind} {self._namespace}/{self._name} can't be created: {error.message or error}") from error
        _print(f"{kind} {self._namespace}/{self._name} created")

    async def _wait_for(
        self, kind: str, describe: Callable[[Manifest], str], success_phases: set[str], failure_phases: set[str]
    ) -> None:
        """Poll until a success phase. Print each line of ``describe`` once, because some come repeatedly."""
        printed: set[str] = set()
        while True:
            found = await _with_retries(lambda: self._api.get(kind, self._namespace, self._name))
            if found is None:
                raise SmokeTestError(f"the {kind} {self._namespace}/{self._name} was deleted during the test")
            phase = (found.get("status") or {}).get("phase")
            self.last_seen = f"{kind}: {describe(found)}"
            if self.last_seen not in printed:
                printed.add(self.last_seen)
                _print(self.last_seen)
            if phase in success_phases:
                return
            if phase in failure_phases:
                raise SmokeTestError(f"the {kind} failed")
            await asyncio.sleep(_POLL_SECONDS)


def describe_isolation(attempts: Sequence[str], policy_enabled: bool) -> str:
    """Return whether another pod can connect to a training pod. An enforced policy drops or refuses connections."""
    if "reached" in attempts:
        cause = "the cluster's network plugin does not enforce NetworkPolicies" if policy_enabled else "site.networkPolicy is off"
        return f"WARNING: any pod of the cluster can connect to training pods, because {cause}"
    if "timeout" in attempts or attempts.count("ConnectionRefusedError") >= _REFUSED_ATTEMPTS:
        return "other pods can't connect to training pods"
    return "whether other pods can connect to training pods could not be tried: the training was too short"


async def _with_retries(request: Callable[[], Awaitable[Manifest | None]]) -> Manifest | None:
    """Return the response. Retry if the API server is unavailable, until the timeout of the test."""
    while True:
        try:
            return await request()
        except ApiError as error:
            if 400 <= error.code < 500 and error.code != 429:
                raise
        await asyncio.sleep(_POLL_SECONDS)


def build_claim(size: str, storage_class: str) -> Manifest:
    """Return the claim for model, data and output. The pods use it one after the other."""
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec}


def build_writer(claim: str, defaults: OperatorDefaults, resources: dict[str, Any]) -> Manifest:
    """Return the pod that writes model and data. It is scheduled like a training pod, so that both can use the volume."""
    container = {
        "name": "writer",
        "image": defaults.trainer_image,
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
            **defaults.security_context.to_wire(),
        },
        "imagePullSecrets": [secret.to_wire() for secret in defaults.image_pull_secrets],
        "nodeSelector": defaults.node_selector,
        "tolerations": [toleration.to_wire() for toleration in defaults.tolerations],
        "containers": [container],
        "volumes": [{"name": "smoke", "persistentVolumeClaim": {"claimName": claim}}, {"name": "tmp", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "spec": spec}


def build_job(claim: str, resources: dict[str, Any]) -> Manifest:
    """Return a FineTuneJob that reads from the claim and writes to it."""
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
    """Return the phase of a pod and, if it waits or failed, the reason."""
    status = pod.get("status") or {}
    reasons = [
        str(condition.get("message", ""))
        for condition in status.get("conditions") or ()
        if condition["type"] == "PodScheduled" and condition["status"] == "False"
    ]
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        state_details = state.get("waiting") or (state.get("terminated") if status.get("phase") == "Failed" else None) or {}
        reasons += [str(state_details[key]) for key in ("reason", "message") if state_details.get(key)]
    return ": ".join([status.get("phase") or "Pending", *reasons])


def describe_job(job: Manifest) -> str:
    """Return phase and message of a FineTuneJob and, if it failed, the hint."""
    status = job.get("status") or {}
    if not status:
        return "no operator has seen it yet"
    failure = status.get("failure") or {}
    message = status.get("message") or status.get("reason") or ""
    parts = [status.get("phase"), message, *(text for text in (failure.get("message"), failure.get("hint")) if text != message)]
    return ": ".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())
