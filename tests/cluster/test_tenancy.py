"""Somebody in another namespace attacks a training. None of their code runs in its pods, and the job goes on by itself."""

import base64
import contextlib
import json
import pickle
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.conftest import make_namespace
from cluster.kube import Namespace, Object, kubectl
from cluster.reader import Reader, start_reader
from finetune_api import names

pytestmark = pytest.mark.cluster
TRAINING = {"maxSteps": 100_000, "globalBatchSize": 8, "maxTokens": 32}
ATTACK = """
import datetime, json
from torch.distributed import TCPStore
store = TCPStore(HOST, PORT, is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=20))
for key in KEYS:
    store.set(key, PAYLOAD)
print(json.dumps(len(KEYS)))
"""
SCAN = """
import json, socket, time
found, end = [], time.monotonic() + 120
for port in range(1024, 65536):
    assert time.monotonic() < end, "the pod has gone"
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            found.append(port)
print(json.dumps(found))
"""
CONNECT = """
import json, socket
with socket.socket() as probe:
    probe.settimeout(3)
    print(json.dumps(probe.connect_ex((HOST, PORT))))
"""
LEFT_BEHIND = """
import json, pathlib
print(json.dumps([str(path) for path in pathlib.Path("/claims").glob("*/ran*")]))
"""


class Payload:
    """Writes a file into the output of the job when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"open({names.OUTPUT_DIR + '/ran'!r}, 'w').close()",)


@pytest.fixture(scope="module")
def stranger(system: Namespace, trainer_image: str) -> Iterator[Reader]:
    """A pod in a namespace that has nothing to do with the jobs."""
    namespace = make_namespace(f"stranger-{secrets.token_hex(3)}")
    try:
        yield start_reader(namespace, "stranger", trainer_image, [], {})
    finally:
        kubectl("delete", "namespace", namespace.name, "--wait=false")


def run(stranger: Reader, code: str, **constants: Any) -> Any:
    """Run a program in the stranger's pod, with these constants."""
    return stranger.python("".join(f"{name} = {value!r}\n" for name, value in constants.items()) + code)


@contextlib.contextmanager
def running(jobs: Namespace, job: Object) -> Iterator[str]:
    """Create a job, wait until it trains, and delete it at the end."""
    name = str(job["metadata"]["name"])
    try:
        jobs.apply(job)
        jobs.wait_for("it to train", lambda: trains(jobs, name, 1), 240, name)
        yield name
    finally:
        jobs.kubectl("delete", "finetunejob", name, "--wait=false", check=False)


def trains(jobs: Namespace, job: str, attempt: int) -> Object | None:
    status = jobs.status(job)
    assert status.get("phase") not in {"Succeeded", "Failed"}, jobs.describe(job)
    return status if status.get("phase") == "Running" and status["attempt"] >= attempt else None


def address_of_first_pod(jobs: Namespace, job: str, stranger: Reader) -> str:
    """Return the IP of the pod with index 0. Skip the test where a NetworkPolicy keeps the stranger out."""
    index = "batch.kubernetes.io/job-completion-index"
    [address] = [pod["status"]["podIP"] for pod in jobs.pods(job) if pod["metadata"]["annotations"][index] == "0"]
    if run(stranger, CONNECT, HOST=address, PORT=names.PORT_TELEMETRY) != 0:
        pytest.skip("the network plugin enforces NetworkPolicies, so a stranger does not get this far")
    return str(address)


def test_a_pickle_in_the_rendezvous_runs_no_code_and_costs_a_restart_that_is_not_charged(
    jobs: Namespace, make_job: Any, reader: Any, stranger: Reader
) -> None:
    fields = {"distributed": {"nodes": 2}, "training": TRAINING, "checkpoint": {"everySteps": 20}, "recovery": {"maxRestarts": 0}}
    with running(jobs, make_job("attacked", **fields)) as job:
        address = address_of_first_pod(jobs, job, stranger)
        keys = [f"torch.rendezvous.{job}-1", "state"]  # of torch's own rendezvous, and of ours
        payload = base64.b64encode(pickle.dumps(Payload())).decode()
        run(stranger, ATTACK, HOST=address, PORT=names.PORT_RENDEZVOUS, KEYS=keys, PAYLOAD=payload)
        status = jobs.wait_for("the next attempt", lambda: trains(jobs, job, 2), 240, job)
        assert status["attempts"][0]["reason"] == "RendezvousTampered"
        assert (status["restarts"]["failures"], status["restarts"]["preemptions"]) == (0, 1)
        assert reader(f"{job}-output").python(LEFT_BEHIND) == [], "code of a stranger ran in a pod of the job"

        maps = jobs.objects("configmaps", f"{names.LABEL_JOB}={job}")
        secret = [item["data"][names.RENDEZVOUS_KEY_FILE_NAME] for item in maps]
        assert len(secret) == len(set(secret)) >= 1, "each attempt has a key of its own"
        shown = json.dumps(jobs.objects("finetunejobs,pods,jobs,events"))
        shown += "".join(jobs.kubectl("logs", pod["metadata"]["name"], check=False).stdout for pod in jobs.pods(job))
        assert not [key for key in secret if key in shown], "the key is in the ConfigMap only"


def test_a_pod_with_two_processes_listens_for_telemetry_only(jobs: Namespace, make_job: Any, stranger: Reader) -> None:
    with running(jobs, make_job("closed", distributed={"processesPerNode": 2}, training=TRAINING)) as job:
        address = address_of_first_pod(jobs, job, stranger)
        assert run(stranger, SCAN, HOST=address) == [names.PORT_TELEMETRY]
        status = trains(jobs, job, 1)
        assert status is not None
        assert (status["attempt"], address_of_first_pod(jobs, job, stranger)) == (1, address), "the pod was there all the time"
