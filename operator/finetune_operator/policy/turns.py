"""Which turns of a job's life are worth an event, and in what words."""

from finetune_api.reasons import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.turn import Turn

_WORTH_A_WARNING = frozenset(
    {
        "Unschedulable",
        "QuotaExceeded",
        Reason.CLAIM_NOT_FOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_REJECTED,
        Reason.SECRET_NOT_FOUND,
    }
)


def build_turns(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[Turn]:
    """The events that follow from a status that was just written."""
    attempt = after.attempt or 0
    message = after.message or ""
    turns = []
    if after.attempt != before.attempt and after.attempt is not None:
        turns.append(Turn("Normal", "Created", f"Created the pods of attempt {attempt}.", attempt))
    if after.phase == before.phase and after.reason == before.reason:
        return turns
    if after.phase == "Pending" and after.reason in _WORTH_A_WARNING:
        turns.append(Turn("Warning", after.reason or "", message, attempt))
    elif after.phase != before.phase and after.phase == "Running":
        turns.append(Turn("Normal", "Started", f"Attempt {attempt} trains.", attempt))
    elif after.phase != before.phase and after.phase == "Publishing":
        turns.append(Turn("Normal", "Publishing", message, attempt))
    elif after.phase == "Succeeded":
        turns.append(Turn("Normal", "Succeeded", message, attempt))
    elif after.phase in ("Restarting", "Failed"):
        turns.append(Turn("Warning", after.phase, f"{after.reason}: {message}", attempt))
    return turns
