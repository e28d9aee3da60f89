"""Chooses the precision for ``spec.training.precision`` on a device. Used by the loops (through device.py) and by the plan."""

from typing import Literal

Requested = Literal["Auto", "bf16", "fp16", "tf32", "fp32"]  # spec.training.precision
Precision = Literal["bf16", "fp16", "tf32", "fp32"]


def choose_precision(requested: Requested, gpu: bool, bf16: bool, tf32: bool) -> Precision:
    """Return the precision of the computation. gpu: whether there is a GPU. bf16, tf32: whether it supports this.

    Raises ValueError if the device lacks the requested precision.
    """
    if requested == "Auto":
        return "bf16" if gpu and bf16 else "fp16" if gpu else "fp32"
    if requested == "fp16" and not gpu:
        raise ValueError("spec.training.precision: fp16 needs a GPU, and there is none here; write Auto, bf16 or fp32")
    if requested == "tf32" and not (gpu and tf32):
        raise ValueError(
            "spec.training.precision: tf32 needs an NVIDIA GPU since Ampere (A100), and there is none here; write Auto or fp32"
        )
    return requested


def is_half(precision: Precision) -> bool:
    """Return whether a number takes 16 bits."""
    return precision in ("bf16", "fp16")
