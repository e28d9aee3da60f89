"""Chooses the precision for ``spec.training.precision`` on a device. Used by the loops (through device.py) and by the plan."""

from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]


def choose_precision(requested: Literal["auto", "bf16", "fp16", "fp32"], gpu: bool, bf16: bool) -> Precision:
    """Return the precision of the computation. gpu: whether there is a GPU. bf16: whether it supports bf16.

    Raises ValueError if the device lacks the requested precision.
    """
    if requested == "auto":
        return "bf16" if gpu and bf16 else "fp16" if gpu else "fp32"
    if requested == "fp16" and not gpu:
        raise ValueError("spec.training.precision: fp16 needs a GPU, and there is none here; write auto, bf16 or fp32")
    return requested
