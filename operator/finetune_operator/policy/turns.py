"""Which turns of a job's life are worth an event, and in what words."""

from collections.abc import Iterator

from finetune_api.reasons import Reason
from finetune_api.status import Condition, FineTuneJobStatus
from finetune_operator.observed import read_time
from finetune_operator.turn import Turn

_WORTH_A_WARNING = frozenset(
    {
        "Forbidden",
        "Inadmissible",
        "NameTaken",
        "QuotaExceeded",
        "Unschedulable",
        "WebhookFailed",
        Reason.CLAIM_NOT_FOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_REJECTED,
        Reason.SECRET_NOT_FOUND,
    }
)
_WITH_PODS = frozenset({"Initializing", "Running", "Publishing"})
# Conditions that come and go while the training goes on → the reason of the event that says that it is over.
_TROUBLES = {"CheckpointFailing": "CheckpointsSaved", "TrainingStalled": "TrainingGoesOn"}
_OVER = {"CheckpointsSaved": "Checkpoints are saved again.", "TrainingGoesOn": "The training makes steps again."}


def build_turns(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[Turn]:
    """The events that follow from a status that was just written."""
    attempt = after.attempt or 0
    turns = []
    if after.attempt != before.attempt and after.attempt is not None:
        turns.append(Turn("Normal", "Created", f"Created the pods of attempt {attempt}.", attempt))
    turns += [*_of_the_attempt(before, after, attempt), *_of_conditions(before, after, attempt)]
    turns += _of_the_model(before, after, attempt)
    if after.phase != before.phase or after.reason != before.reason:
        turn = _of_phase(before, after, attempt, after.message or "")
        turns += [turn] if turn is not None else []
    return turns


def _of_the_attempt(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int) -> Iterator[Turn]:
    """What happened in an attempt that goes on."""
    if not after.attempts:
        return
    last = after.attempts[-1]
    known = next((item for item in before.attempts or () if item.number == last.number), None)
    skipped = last.skipped_checkpoints
    if skipped and (known is None or known.skipped_checkpoints != skipped):
        message = f"Attempt {last.number} left out what it found damaged: {', '.join(skipped)}."
        yield Turn("Warning", "CheckpointSkipped", message, attempt)
    times = last.in_place or 0
    if times > ((known.in_place or 0) if known is not None else 0):
        often = f"{times} times so far" if times > 1 else "for the first time"
        message = f"Processes of attempt {last.number} were restarted in their pods, {often}."
        yield Turn("Warning", "RestartedInPlace", message, attempt, occasion=times)


def _of_the_model(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int) -> Iterator[Turn]:
    """What there is of the model by now. Of checkpoints the first is told, and one for each quarter of the way."""
    if after.checkpoint is not None and _quarters(after) > _quarters(before):
        step, total = after.checkpoint.step, after.progress.total_steps if after.progress is not None else None
        message = f"The checkpoint of step {step}{f' of {total}' if total else ''} is complete."
        yield Turn("Normal", "CheckpointSaved", message, attempt, occasion=step)
    if after.best is not None and (before.best is None or before.best.step != after.best.step):
        figures = ", ".join(f"{name} {value:g}" for name, value in after.best.metrics.items())
        message = f"The model of step {after.best.step} is the best so far: {figures}."
        yield Turn("Normal", "BestModel", message, attempt, occasion=after.best.step)
    if after.published is not None and before.published != after.published:
        yield Turn("Normal", "Published", f"Pushed to {after.published.url}, commit {after.published.commit[:12]}.", attempt)


def _quarters(status: FineTuneJobStatus) -> int:
    """Of the way that the newest checkpoint holds, and one for there being a checkpoint."""
    if status.checkpoint is None:
        return 0
    total = status.progress.total_steps if status.progress is not None else None
    return 1 + (4 * status.checkpoint.step // total if total else 0)


def _of_conditions(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int) -> Iterator[Turn]:
    """What is wrong with a training that goes on, and that it is not any more."""
    for kind, over in _TROUBLES.items():
        was, now = _condition(before, kind), _condition(after, kind)
        if now is not None and (was is None or was.reason != now.reason):
            yield Turn("Warning", kind, f"{now.reason}: {now.message}", attempt, occasion=_moment(now))
        elif was is not None and now is None and after.phase in _WITH_PODS:
            yield Turn("Normal", over, _OVER[over], attempt, occasion=_moment(was))


def _condition(status: FineTuneJobStatus, kind: str) -> Condition | None:
    return next((item for item in status.conditions or () if item.type == kind and item.status == "True"), None)


def _moment(condition: Condition) -> int:
    """Unix time of the condition's last change: it tells one time from the next."""
    since = read_time(condition.last_transition_time)
    return int(since.timestamp()) if since is not None else 0


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
