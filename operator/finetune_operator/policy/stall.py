"""Detects an attempt that no longer answers, because its node is gone or frozen. Its own stall detection then fails too."""

from finetune_api.durations import format_duration
from finetune_api.reasons import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Failure, FineTuneJobStatus
from finetune_operator.observed import PodState
from finetune_operator.policy.failure import build_failure

# A live pod reports a stall itself, with the stacks of its processes. It gets this much more time to do so.
_WATCHDOG_MARGIN_SECONDS = 120.0
# A step may take this many times its usual duration.
_STEP_TIME_FACTOR = 10


def find_stall(
    spec: FineTuneJobSpec, status: FineTuneJobStatus, first_pod: PodState | None, unresponsive_seconds: float
) -> Failure | None:
    """Return the failure of an attempt that was training and no longer answers. Return None if it answers, or detection is off.

    first_pod: the pod with index 0. unresponsive_seconds: how long this pod has not answered requests.
    """
    allowed, progress = spec.recovery.stall_timeout_seconds, status.progress
    if not allowed or first_pod is None or status.phase != "Running" or progress is None or progress.last_step_time is None:
        return None
    if unresponsive_seconds < max(allowed, _STEP_TIME_FACTOR * _usual_step_seconds(status)) + _WATCHDOG_MARGIN_SECONDS:
        return None
    message = (
        f"pod {first_pod.name} on {first_pod.node} has not answered for {format_duration(unresponsive_seconds)}; "
        f"the last step that it reported was {progress.step}, at {progress.last_step_time}"
    )
    return build_failure(Reason.STALLED, message, first_pod)


def _usual_step_seconds(status: FineTuneJobStatus) -> float:
    """Return how long an optimizer step takes according to the last report; 0 if that is unknown."""
    rows = status.resolved.global_batch_size if status.resolved is not None else None
    rate = status.progress.samples_per_second if status.progress is not None else None
    return rows / rate if rows and rate else 0.0
