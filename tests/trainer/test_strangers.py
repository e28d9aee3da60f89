"""Somebody who reaches the ports of a training and knows everything but its key: runs no code, and the job says what happened."""

import base64
import datetime
import ipaddress
import pathlib
import pickle
import re

import psutil
import torch.distributed as dist

from finetune_api import names
from finetune_api.reasons import REASONS, Reason
from trainer.pod_processes import Pod, PodGroup

SLOW = {"seconds": 0.2}
SECURITY = pathlib.Path(__file__).resolve().parents[2] / "docs/security.md"


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (self._file,)


def listening(pod: Pod) -> set[tuple[str, int]]:
    """Return the addresses and ports on which the processes of a pod listen."""
    launcher = psutil.Process(pod.process.pid)
    found = [each for process in [launcher, *launcher.children(recursive=True)] for each in process.net_connections("inet")]
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}


def documented(job: str) -> list[str]:
    """Return the column ``port`` of the table in docs/security.md for a kind of job."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", SECURITY.read_text(encoding="utf-8"), re.MULTILINE)
    found = [ports for kind, ports in rows if kind == job]
    assert found, f"{SECURITY} has no row {job!r}"
    return found


def test_a_job_of_one_process_does_not_listen(pod_group: PodGroup) -> None:
    """Except on the telemetry port, which the launcher of these tests does not serve."""
    pod = pod_group.start(pod_group.config("out"), fault=SLOW)
    pod.wait_for_step(2)
    assert documented("one process") == ["none"]
    assert listening(pod) == set()


def test_the_processes_of_a_single_pod_listen_on_loopback_only(pod_group: PodGroup) -> None:
    pod = pod_group.start(pod_group.config("out", processes=2), fault=SLOW)
    pod.wait_for_step(2)
    addresses = {ipaddress.ip_address(address) for address, _ in listening(pod)}
    assert addresses
    assert all(address.is_loopback for address in addresses), addresses
    assert all("random ports of the loopback interface" in ports for ports in documented("one pod, several processes"))


def test_a_pickle_in_the_rendezvous_runs_no_code_and_charges_no_failure(pod_group: PodGroup, tmp_path: pathlib.Path) -> None:
    config = pod_group.config("out", nodes=2, steps=1000)
    pods = [pod_group.start(config, index, SLOW) for index in (0, 1)]
    pods[0].wait_for_step(3)
    addresses = {address for address, port in listening(pods[0]) if port == names.PORT_RENDEZVOUS}
    assert addresses - {"127.0.0.1", "::1"}, "the other pod connects to it"
    fixed, *others = documented("several pods")
    assert fixed.startswith(f"{names.PORT_RENDEZVOUS} of the pod with index 0")
    assert all(ports.startswith("random ports") for ports in others)
    assert names.PORT_RENDEZVOUS not in {port for _, port in listening(pods[1])}
    stranger = connect()
    payload = base64.b64encode(pickle.dumps(Payload(tmp_path / "ran"))).decode()
    for key in (f"torch.rendezvous.{config.name}-{config.attempt}", "state"):
        stranger.set(key, payload)
    assert_tampered(pods, "received 'state' from something that is not part of the job")
    assert not (tmp_path / "ran").exists()
    assert REASONS[Reason.RENDEZVOUS_TAMPERED].budget == "maxPreemptions"


def connect() -> dist.TCPStore:
    """Return the store of the rendezvous, as anybody can use it."""
    seconds = datetime.timedelta(seconds=20)
    return dist.TCPStore("127.0.0.1", names.PORT_RENDEZVOUS, is_master=False, timeout=seconds, wait_for_workers=False)


def assert_tampered(pods: list[Pod], message: str) -> None:
    """Wait for the end of the pods. At least one of them must report the stranger; others may only see that a peer is gone."""
    reports = [pod.final_report() for pod in pods]
    failures = [report.failure for report in reports if report.failure]
    assert any(failure.reason == Reason.RENDEZVOUS_TAMPERED and message in failure.message for failure in failures), reports


def test_several_pods_without_a_key_are_refused(pod_group: PodGroup) -> None:
    pod = pod_group.start(pod_group.config("out", nodes=2), WITHOUT_KEY="1")
    report = pod.final_report()
    assert report.failure is not None
    assert report.failure.reason == "ConfigurationError"
    assert "upgrade the operator" in report.failure.message
