"""A job that nobody hears of any more: its own watchdog is gone with the machine, or frozen with it."""

from finetune_api.durations import format_duration
from finetune_api.reasons import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Failure, FineTuneJobStatus
from finetune_operator.observed import PodState
from finetune_operator.policy.failure import build_failure

# A pod that lives tells of a stall itself, with the stacks of its processes: for that it has so much longer.
_HEAD_START_SECONDS = 120.0
# A step may take so many times as long as it usually does.
_USUAL_STEPS = 10


def find_silence(
    spec: FineTuneJobSpec, status: FineTuneJobStatus, first: PodState | None, silent_seconds: float
) -> Failure | None:
    """The failure of an attempt that trained and does not answer any more; None if all is well, or nobody wants to know.

    first: the pod with index 0. silent_seconds: for how long it has been asked without an answer.
    """
    allowed, progress = spec.recovery.stall_timeout_seconds, status.progress
    if not allowed or first is None or status.phase != "Running" or progress is None or progress.last_step_time is None:
        return None
    if silent_seconds < max(allowed, _USUAL_STEPS * _usual_step_seconds(status)) + _HEAD_START_SECONDS:
        return None
    message = (
        f"pod {first.name} on {first.node} has not answered for {format_duration(silent_seconds)}; the last step that it told of "
        f"was {progress.step}, at {progress.last_step_time}"
    )
    return build_failure(Reason.STALLED, message, first)


def _usual_step_seconds(status: FineTuneJobStatus) -> float:
    """How long an optimizer step takes by what was told last; 0 if that is not known."""
    rows = status.resolved.global_batch_size if status.resolved is not None else None
    rate = status.progress.samples_per_second if status.progress is not None else None
    return rows / rate if rows and rate else 0.0
