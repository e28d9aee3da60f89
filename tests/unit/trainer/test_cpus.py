"""How many CPUs the threads of a pod use: what the pod was given, and never more than the cores."""

import pathlib

import pytest

from finetune_api import names, resource
from finetune_api.wire import RunConfig
from finetune_trainer.runtime import cpus
from finetune_trainer.runtime.cpus import choose_cpus, count_gpus_of_machine, usable_cpus

NVIDIA, AMD, INTEL, ASPEED = "0x10de", "0x1002", "0x8086", "0x1a03"


@pytest.mark.parametrize(
    ("limit", "request_cpus", "gpu_share", "expected"),
    [
        pytest.param(4.0, 2.0, 12.0, 4, id="the limit decides"),
        pytest.param(0.5, 0.5, None, 1, id="a limit below one CPU"),
        pytest.param(1.5, 0.0, None, 2, id="a part of a CPU is worth a thread"),
        pytest.param(200.0, 0.0, None, 96, id="a limit beyond the machine"),
        pytest.param(None, 8.0, 12.0, 8, id="without a limit the request"),
        pytest.param(None, 1.0, None, 1, id="a request of one CPU"),
        pytest.param(None, 0.5, 12.0, 12, id="a small request is no estimate: the share of the GPUs"),
        pytest.param(None, 0.5, None, 96, id="neither limit nor GPUs: all cores"),
        pytest.param(None, 0.0, 0.0, 1, id="more GPUs than cores"),
    ],
)
def test_threads_follow_from_what_the_pod_was_given(
    limit: float | None, request_cpus: float, gpu_share: float | None, expected: int
) -> None:
    assert choose_cpus(96, limit, request_cpus, gpu_share) == expected


def config(gpus: int, processes: int) -> RunConfig:
    spec = {
        "task": "text-classification",
        "model": {"claim": {"claimName": "m"}},
        "datasets": [{"claim": {"claimName": "d"}}],
        "distributed": {"gpusPerNode": gpus},
    }
    return RunConfig(
        name="news", namespace="team", spec=resource.parse_spec(spec), nodes=1, processes_per_node=processes, output="/out"
    )


@pytest.mark.parametrize(
    ("gpus", "processes", "request_milli", "cpu_max", "expected"),
    [
        pytest.param(1, 1, "500", "max 100000", 12, id="one of eight GPUs"),
        pytest.param(8, 8, "500", "max 100000", 96, id="all GPUs"),
        pytest.param(1, 8, None, "max 100000", 96, id="on one machine, with a process per GPU"),
        pytest.param(0, 4, "500", "max 100000", 96, id="no GPUs"),
        pytest.param(1, 1, "16000", "max 100000", 16, id="a request"),
        pytest.param(1, 1, "16000", "2000000 100000", 20, id="a limit"),
    ],
)
def test_the_cpus_of_a_pod_are_read_from_its_cgroup_the_downward_api_and_its_gpus(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    gpus: int, processes: int, request_milli: str | None, cpu_max: str, expected: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(96)))
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setattr(cpus, "count_gpus_of_machine", lambda: 8)
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    environ = {} if request_milli is None else {names.ENV_CPU_REQUEST: request_milli}
    assert usable_cpus(config(gpus, processes), environ, tmp_path) == expected


def add_device(root: pathlib.Path, vendor: str, kind: str, virtual: bool = False) -> None:
    device = root / f"0000:{len(list(root.iterdir())):02x}:00.0"
    device.mkdir()
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")
    if virtual:
        (device / "physfn").symlink_to("..")


def test_the_gpus_of_the_machine_are_those_on_its_bus(tmp_path: pathlib.Path) -> None:
    assert count_gpus_of_machine(tmp_path / "none") == count_gpus_of_machine(tmp_path) == 0
    for vendor, kind in ((INTEL, "0x030000"), (ASPEED, "0x030000"), (AMD, "0x030000"), (NVIDIA, "0x068000")):
        add_device(tmp_path, vendor, kind)  # graphics of processors, and a switch between GPUs
    for _ in range(4):
        add_device(tmp_path, NVIDIA, "0x030200")
        add_device(tmp_path, NVIDIA, "0x030200", virtual=True)
    assert count_gpus_of_machine(tmp_path) == 4


def test_accelerators_without_a_display_count_as_gpus(tmp_path: pathlib.Path) -> None:
    for _ in range(8):
        add_device(tmp_path, AMD, "0x120000")
    assert count_gpus_of_machine(tmp_path) == 8
