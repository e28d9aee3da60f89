"""Parses Kubernetes quantities to bytes, and formats bytes for people."""

import re

_SUFFIXES = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)
}
GIB = 1024**3


def parse_quantity(text: int | str) -> int:
    """Return the bytes of a quantity such as 80Gi, 1.5G, 1e9 or 1024, rounded up; raise ValueError if it is not a quantity."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][-+]?[0-9]{1,2})|([A-Za-z]{0,2}))", str(text).strip())
    if not match or (match[3] or "") not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a size; write for example 80Gi")
    return -int(-float(match[1] + (match[2] or "")) * _SUFFIXES[match[3] or ""] // 1)


def format_bytes(count: float) -> str:
    """Format bytes for people, with at most three digits: 431 MiB, 1.7 GiB, 26 GiB, 1.2 TiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < (1024 if unit != "B" else 1000):
            return f"{count:.1f} {unit}" if unit == "GiB" and count < 10 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
