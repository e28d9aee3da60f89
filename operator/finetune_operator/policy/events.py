"""Chooses which changes of a job's status become events, and writes their messages."""

from collections.abc import Iterator

from finetune_api.reasons import Reason
from finetune_api.status import Condition, FineTuneJobStatus
from finetune_operator.event import Event
from finetune_operator.observed import read_time

_WARNING_REASONS = frozenset(
    {
        "Forbidden",
        "Inadmissible",
        "NameTaken",
        "OutputNotShared",
        "QuotaExceeded",
        "Unschedulable",
        "WebhookFailed",
        Reason.CLAIM_NOT_FOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.POD_REJECTED,
        Reason.SECRET_NOT_FOUND,
    }
)
_PHASES_WITH_PODS = frozenset({"Initializing", "Running", "Publishing"})
# Conditions that may end while the training continues → the reason of the event for their end.
_RECOVERY_REASONS = {
    "CheckpointFailing": "CheckpointsSaved",
    "ProgressUnknown": "ProgressKnown",
    "TrainingStalled": "TrainingGoesOn",
}
_RECOVERY_MESSAGES = {
    "CheckpointsSaved": "Checkpoints are saved again.",
    "ProgressKnown": "The pods report their progress again.",
    "TrainingGoesOn": "The training makes progress again.",
}


def build_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[Event]:
    """Return the events for a status that was just written."""
    attempt = after.attempt or 0
    events = []
    if after.attempt != before.attempt and after.attempt is not None:
        events.append(Event("Normal", "Created", f"Created the pods of attempt {attempt}.", attempt))
    events += [*_attempt_events(before, after, attempt), *_condition_events(before, after, attempt)]
    events += _model_events(before, after, attempt)
    if after.phase != before.phase or after.reason != before.reason:
        event = _phase_event(before, after, attempt, after.message or "")
        events += [event] if event is not None else []
    return events


def _attempt_events(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int) -> Iterator[Event]:
    """Yield the events about the checkpoint that an attempt starts from, damaged checkpoints, and restarts in place."""
    if not after.attempts:
        return
    last = after.attempts[-1]
    known = next((item for item in before.attempts or () if item.number == last.number), None)
    skipped = last.skipped_checkpoints
    if skipped and (known is None or known.skipped_checkpoints != skipped):
        message = f"Attempt {last.number} skipped damaged checkpoints: {', '.join(skipped)}."
        yield Event("Warning", "CheckpointSkipped", message, attempt)
    newest = before.checkpoint.step if before.checkpoint is not None else None
    if last.from_step not in (None, known.from_step if known is not None else newest):
        message = f"Attempt {last.number} goes on from the checkpoint of step {last.from_step}."
        yield Event("Normal", "Resumed", message, attempt)
    times = last.in_place or 0
    if times > ((known.in_place or 0) if known is not None else 0):
        how_often = f"{times} times so far" if times > 1 else "for the first time"
        message = f"Processes of attempt {last.number} were restarted in their pods, {how_often}."
        yield Event("Warning", "RestartedInPlace", message, attempt, occurrence=times)


def _model_events(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int) -> Iterator[Event]:
    """Yield the events about checkpoints (the first, and one per quarter of the steps), the best model, findings and the push."""
    if after.checkpoint is not None and _quarters_saved(after) > max(_quarters_saved(before), _quarters_at_start(after)):
        step, total = after.checkpoint.step, after.progress.total_steps if after.progress is not None else None
        message = f"The checkpoint of step {step}{f' of {total}' if total else ''} is complete."
        yield Event("Normal", "CheckpointSaved", message, attempt, occurrence=step)
    if after.best is not None and (before.best is None or before.best.step != after.best.step):
        metrics = ", ".join(f"{name} {value:g}" for name, value in after.best.metrics.items())
        message = f"The model of step {after.best.step} is the best so far: {metrics}."
        yield Event("Normal", "BestModel", message, attempt, occurrence=after.best.step)
    known = {finding.type for finding in before.findings or ()}
    for finding in after.findings or ():
        if finding.type not in known:  # attempt 0: once for the whole job, also if the finding goes and comes again
            yield Event("Warning", finding.type, finding.message, 0)
    if after.published is not None and before.published != after.published:
        yield Event("Normal", "Published", f"Pushed to {after.published.url}, commit {after.published.commit[:12]}.", attempt)


def _quarters_saved(status: FineTuneJobStatus) -> int:
    """Return 1 + the number of quarters of the training that the newest checkpoint covers. Return 0 without a checkpoint."""
    return _quarters(status, status.checkpoint.step) if status.checkpoint is not None else 0


def _quarters_at_start(status: FineTuneJobStatus) -> int:
    """Return the same for the checkpoint that the attempt started from."""
    from_step = status.attempts[-1].from_step if status.attempts else None
    return _quarters(status, from_step) if from_step is not None else 0


def _quarters(status: FineTuneJobStatus, step: int) -> int:
    total = status.progress.total_steps if status.progress is not None else None
    return 1 + (4 * step // total if total else 0)


def _condition_events(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int) -> Iterator[Event]:
    """Yield the events about problems that begin or end while the training continues."""
    for kind, recovery_reason in _RECOVERY_REASONS.items():
        was, now = _condition(before, kind), _condition(after, kind)
        if now is not None and (was is None or was.reason != now.reason):
            yield Event("Warning", kind, f"{now.reason}: {now.message}", attempt, occurrence=_transition_seconds(now))
        elif was is not None and now is None and after.phase in _PHASES_WITH_PODS:
            yield Event(
                "Normal", recovery_reason, _RECOVERY_MESSAGES[recovery_reason], attempt, occurrence=_transition_seconds(was)
            )


def _condition(status: FineTuneJobStatus, kind: str) -> Condition | None:
    return next((item for item in status.conditions or () if item.type == kind and item.status == "True"), None)


def _transition_seconds(condition: Condition) -> int:
    """Return the Unix time of the condition's last change. It distinguishes one occurrence from the next."""
    since = read_time(condition.last_transition_time)
    return int(since.timestamp()) if since is not None else 0


def _phase_event(before: FineTuneJobStatus, after: FineTuneJobStatus, attempt: int, message: str) -> Event | None:
    phase, is_new = after.phase, after.phase != before.phase
    if phase == "Queued" and before.phase in _PHASES_WITH_PODS:
        return Event("Warning", "Evicted", message, attempt, occurrence=after.running_seconds or 0)
    if phase in ("Pending", "Queued") and after.reason in _WARNING_REASONS:
        return Event("Warning", after.reason or "", message, attempt)
    if phase in ("Restarting", "Failed"):
        return Event("Warning", phase, f"{after.reason}: {message}", attempt)
    if phase == "Succeeded":
        return Event("Normal", "Succeeded", message, attempt)
    if is_new and phase == "Running":
        return Event("Normal", "Started", f"Attempt {attempt} trains.", attempt, occurrence=after.running_seconds or 0)
    if is_new and phase == "Publishing":
        return Event("Normal", "Publishing", message, attempt)
    if is_new and phase == "Suspended":
        text = "Stopped on request: the pods save a checkpoint and end." if attempt else "Not started: spec.suspend is true."
        return Event("Normal", "Suspended", text, attempt)
    return None
