"""Findings about the course of the training: its losses, its gradients, its learning rate, its hardware, its first weights."""

import math
import statistics
from collections.abc import Iterator

from finetune_api.findings import (
    CLIP_FACTOR,
    CLIPPED_SHARE,
    COURSE_SHARE,
    DATA_WAIT_SHARE,
    JUMP_FACTOR,
    JUMP_WINDOW,
    LOSS_TOLERANCE,
    MEMORY_SHARE,
    MIN_JUMPS,
    MIN_LOGGED_STEPS,
    MIN_SECONDS_OF_STEPS,
    MIN_SHARE_OF_STEPS,
    ZERO_RATE_SHARE,
    FindingType,
)
from finetune_trainer.findings.record import Found, Record

_LAYERS_NAMED = 3


def losses(record: Record) -> Iterator[Found]:
    """Find a loss that does not fall, and one that jumps."""
    values = [float(entry["loss"]) for entry in record.steps]
    jumps = [at for at in range(JUMP_WINDOW, len(values) - 1) if _is_jump(values, at)]
    if len(jumps) >= MIN_JUMPS:
        worst = max(jumps, key=values.__getitem__)
        yield (
            FindingType.LOSS_JUMPS,
            (
                f"the training loss jumped {len(jumps)} times above its first value of {values[0]:.4g}, at step "
                f"{record.steps[worst]['step']:,} to {values[worst]:.4g}"
            ),
        )
    if len(values) < MIN_LOGGED_STEPS or record.share_of_steps < MIN_SHARE_OF_STEPS:
        return
    quarter = int(COURSE_SHARE * len(values))
    first, last = statistics.fmean(values[:quarter]), statistics.fmean(values[-quarter:])
    if last >= first and not _held_out_loss_fell(record):
        text = f"the training loss is {last:.4g} in the last quarter, and was {first:.4g} in the first"
        yield FindingType.LOSS_DOES_NOT_FALL, text


def _is_jump(values: list[float], at: int) -> bool:
    usual = statistics.median(values[at - JUMP_WINDOW : at])
    return min(values[at : at + 2]) > max(values[0], JUMP_FACTOR * usual)


def _held_out_loss_fell(record: Record) -> bool:
    if record.before is None or record.last is None:
        return False
    before, last = record.before.metrics.get("loss", math.inf), record.last.metrics.get("loss", math.inf)
    return last < (1 - LOSS_TOLERANCE) * before


def gradients(record: Record) -> Iterator[Found]:
    """Find gradients that are clipped to a small part of their length in most steps."""
    norms = [float(entry["gradientNorm"]) for entry in record.steps if isinstance(entry.get("gradientNorm"), float)]
    limit = CLIP_FACTOR * record.clip_norm
    clipped = sum(norm > limit for norm in norms)
    if limit and len(norms) >= MIN_LOGGED_STEPS and clipped > CLIPPED_SHARE * len(norms):
        yield (
            FindingType.GRADIENTS_CLIPPED,
            (
                f"gradients are clipped to {record.clip_norm:g}, and their norm is above {limit:g} in {clipped:,} of "
                f"{len(norms):,} logged steps, {statistics.median(norms):.3g} in the middle one"
            ),
        )


def learning_rate(record: Record) -> Iterator[Found]:
    """Find a training with a learning rate of zero."""
    rates = [entry["learningRate"] for entry in record.steps if "learningRate" in entry]
    zero = sum(rate == 0 for rate in rates)
    enough = len(rates) >= MIN_LOGGED_STEPS and record.share_of_steps >= MIN_SHARE_OF_STEPS
    if enough and zero >= ZERO_RATE_SHARE * len(rates):
        yield FindingType.LEARNING_RATE_ZERO, f"the learning rate is 0 in {zero:,} of {len(rates):,} logged steps"


def missing_weights(record: Record) -> Iterator[Found]:
    """Name the layers that started from random numbers although the task needs no new ones."""
    if record.missing:
        named = ", ".join(record.missing[:_LAYERS_NAMED])
        more = f" and {len(record.missing) - _LAYERS_NAMED} more" if len(record.missing) > _LAYERS_NAMED else ""
        yield FindingType.MISSING_WEIGHTS, f"the files of the model lack {named}{more}"


def hardware(record: Record) -> Iterator[Found]:
    """Find a GPU that waits for data, or has much memory left."""
    used = record.hardware
    if used.step_seconds >= MIN_SECONDS_OF_STEPS and used.data_wait_seconds >= DATA_WAIT_SHARE * used.step_seconds:
        share = used.data_wait_seconds / used.step_seconds
        yield FindingType.WAITING_FOR_DATA, f"{share:.0%} of the time of the steps was spent waiting for data"
    if used.memory_share is not None and used.memory_share <= MEMORY_SHARE and used.accumulation > 1:
        share = used.memory_share
        text = f"at most {share:.0%} of the GPU's memory was used, and each step takes {used.accumulation} forward passes"
        yield FindingType.MEMORY_UNUSED, text


CHECKS = (losses, gradients, learning_rate, missing_weights, hardware)
