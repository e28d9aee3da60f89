"""Reads what the kernel says about this container (cgroup version 1 or 2): its limit of CPU, and the state of its memory."""

import contextlib
import dataclasses
import pathlib
from typing import Final

import psutil

ROOT: Final = pathlib.Path("/sys/fs/cgroup")
# Without a limit, version 1 reports the largest multiple of a page that the kernel can count.
_NO_LIMIT_BYTES = 1 << 60


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory of the container.

    kills: processes of it that the kernel has ended so far because memory ran out. limit_bytes: None without a limit. peak_bytes:
    the most that was in use so far; None if this kernel does not report it.
    """

    kills: int = 0
    limit_bytes: int | None = None
    peak_bytes: int | None = None


def parse_cpu_limit(quota: str, period: str) -> float | None:
    """Return the limit in CPUs from microseconds per period. The quota without a limit is "max" (version 2) or -1."""
    if not quota.isdecimal() or not period.isdecimal() or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def parse_memory(events: str, limit: str, peak: str) -> Memory:
    """Return the state of the memory. events: one name and number per line. limit: bytes, or "max". peak: bytes."""
    counts = dict(line.split(maxsplit=1) for line in events.splitlines() if " " in line)
    limit_bytes = int(limit) if limit.isdecimal() and int(limit) < _NO_LIMIT_BYTES else None
    kills = counts.get("oom_kill", "")
    return Memory(int(kills) if kills.isdecimal() else 0, limit_bytes, int(peak) if peak.isdecimal() else None)


def read_cpu_limit(root: pathlib.Path = ROOT) -> float | None:
    """Return the number of CPUs that the container may use, for example 0.5; None without a limit."""
    quota, _, period = read_kernel_file(root / "cpu.max").partition(" ")
    if quota:
        return parse_cpu_limit(quota, period)
    return parse_cpu_limit(read_kernel_file(root / "cpu/cpu.cfs_quota_us"), read_kernel_file(root / "cpu/cpu.cfs_period_us"))


def read_memory(root: pathlib.Path = ROOT) -> Memory:
    """Return the state of the container's memory. Without a cgroup, for example on a laptop, nothing is known and kills is 0."""
    events = read_kernel_file(root / "memory.events")
    if events:
        return parse_memory(events, read_kernel_file(root / "memory.max"), read_kernel_file(root / "memory.peak"))
    files = ("memory.oom_control", "memory.limit_in_bytes", "memory.max_usage_in_bytes")
    return parse_memory(*(read_kernel_file(root / "memory" / name) for name in files))


def available_memory(root: pathlib.Path = ROOT) -> int:
    """Return the bytes that this container may still use: the node's free memory, up to the limit of its cgroup."""
    free = int(psutil.virtual_memory().available)
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            left = int((root / limit).read_text()) - int((root / used).read_text())
            stat = dict(line.split() for line in (root / used).with_name("memory.stat").read_text().splitlines())
            free = min(free, left + int(stat.get(cache, 0)))
    return max(0, free)


def read_kernel_file(path: pathlib.Path) -> str:
    """Return the text of a file of /sys or /proc, "" if there is none."""
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
