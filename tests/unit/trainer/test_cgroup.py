"""What the container's cgroup says, in both versions."""

import pathlib

import pytest

from finetune_trainer.runtime.cgroup import Memory, available_memory, read_cpu_limit, read_memory

UNLIMITED_V1 = str((1 << 63) - 4096)


def write(root: pathlib.Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content + "\n")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000"}, 1.0),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_cpu_limit_is_read_from_both_versions_of_cgroups(
    tmp_path: pathlib.Path, files: dict[str, str], expected: float | None
) -> None:
    write(tmp_path, files)
    assert read_cpu_limit(tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 1",
                "memory.max": "700",
                "memory.peak": "650",
            },
            Memory(kills=3, limit_bytes=700, peak_bytes=650),
        ),
        ({"memory.events": "oom 0\noom_kill 0", "memory.max": "max"}, Memory(kills=0)),
        (
            {
                "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
                "memory/memory.limit_in_bytes": "700",
                "memory/memory.max_usage_in_bytes": "650",
            },
            Memory(kills=2, limit_bytes=700, peak_bytes=650),
        ),
        ({"memory/memory.oom_control": "oom_kill 0", "memory/memory.limit_in_bytes": UNLIMITED_V1}, Memory(kills=0)),
        ({"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0"}, Memory()),
        ({}, Memory()),
    ],
)
def test_the_kills_the_limit_and_the_peak_are_read_from_both_versions_of_cgroups(
    tmp_path: pathlib.Path, files: dict[str, str], expected: Memory
) -> None:
    write(tmp_path, files)
    assert read_memory(tmp_path) == expected


def test_free_memory_is_what_the_container_may_still_allocate(tmp_path: pathlib.Path) -> None:
    write(tmp_path, {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 600\ninactive_file 100"})
    assert available_memory(tmp_path) == 400
    write(tmp_path, {"memory.max": "max"})
    assert available_memory(tmp_path) > 1 << 20
