"""Which precision ``spec.training.precision`` comes to on a device: for the loop, which asks torch, and for the plan."""

from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]


def choose_precision(asked: Literal["auto", "bf16", "fp16", "fp32"], gpu: bool, bf16: bool) -> Precision:
    """The precision of the computation. gpu: whether there is one; bf16: whether it computes in bf16.

    Raises ValueError for one that the device lacks.
    """
    if asked == "auto":
        return "bf16" if gpu and bf16 else "fp16" if gpu else "fp32"
    if asked == "fp16" and not gpu:
        raise ValueError("spec.training.precision: fp16 needs a GPU, and there is none here; write auto, bf16 or fp32")
    return asked
