"""Which turns of a job's life are worth an event, and in what words."""

from finetune_api.reasons import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.turn import Turn

_WORTH_A_WARNING = frozenset(
    {
        "Forbidden",
        "Inadmissible",
        "NameTaken",
        "QuotaExceeded",
        "Unschedulable",
        Reason.CLAIM_NOT_FOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_REJECTED,
        Reason.SECRET_NOT_FOUND,
    }
)
_WITH_PODS = frozenset({"Initializing", "Running", "Publishing"})


def build_turns(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[Turn]:
    """The events that follow from a status that was just written."""
    attempt = after.attempt or 0
    turns = []
    if after.attempt != before.attempt and after.attempt is not None:
        turns.append(Turn("Normal", "Created", f"Created the pods of attempt {attempt}.", attempt))
    if after.phase != before.phase or after.reason != before.reason:
        turn = _of_phase(before, after, attempt, after.message or "")
        turns += [turn] if turn is not None else []
    return turns


def _of_phase(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int, message: str) -> Turn | None:
    phase, is_new = after.phase, after.phase != before.phase
    if phase == "Queued" and before.phase in _WITH_PODS:
        return Turn("Warning", "Evicted", message, attempt, occasion=after.running_seconds or 0)
    if phase in ("Pending", "Queued") and after.reason in _WORTH_A_WARNING:
        return Turn("Warning", after.reason or "", message, attempt)
    if phase in ("Restarting", "Failed"):
        return Turn("Warning", phase, f"{after.reason}: {message}", attempt)
    if phase == "Succeeded":
        return Turn("Normal", "Succeeded", message, attempt)
    if is_new and phase == "Running":
        return Turn("Normal", "Started", f"Attempt {attempt} trains.", attempt, occasion=after.running_seconds or 0)
    if is_new and phase == "Publishing":
        return Turn("Normal", "Publishing", message, attempt)
    if is_new and phase == "Suspended":
        what = "Stopped on request: the pods save a checkpoint and end." if attempt else "Not started, as spec.suspend says."
        return Turn("Normal", "Suspended", what, attempt)
    return None
