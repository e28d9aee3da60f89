"""`kubectl finetune why`: show on one screen what a job waits for or why it failed, and what to do."""

import datetime
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_api import names
from finetune_api.durations import format_duration
from finetune_api.files import printable
from finetune_api.reasons import REASONS, Reason
from finetune_api.status import Failure
from finetune_client.formatting import find_problems, format_event, format_progress, format_restarts, format_state
from finetune_client.logs import processes_per_node
from finetune_client.records import EventRecord, JobRecord, PodRecord, read_time

_EVENTS = 6
_HINTS: dict[str | None, str] = {str(reason): info.hint for reason, info in REASONS.items()}
# Phases in which the training pods run.
_RUNNING = ("Running", "Publishing")


def build_view(
    job: JobRecord,
    events: Sequence[EventRecord],
    pods: Sequence[PodRecord],
    log_tail: Sequence[str],
    now: datetime.datetime | None = None,
) -> RenderableType:
    """Return the screen. events: the earliest first. log_tail: the last log lines of the process that failed; may be empty."""
    now = now or datetime.datetime.now(datetime.UTC)
    parts: list[RenderableType] = [Text.assemble((f"{job.name}  ", "bold"), (format_state(job), "bold"))]
    parts += [Text(f"  {line}") for line in _details(job)]
    parts += _section("Conditions", [Text(f"  {line}") for line in _conditions(job)])
    parts += _section("Findings", [Text(f"  {line}") for line in _findings(job)])
    parts += _section("Attempts", _attempts(job, now))
    parts += _section("Pods", _pods(pods))
    parts += _section("Events", [Text(f"  {format_event(event)}") for event in events[-_EVENTS:]])
    failure = current_failure(job)
    lines = failure.traceback.splitlines() if failure is not None and failure.traceback else list(log_tail)
    parts += _section("Last lines of the process that failed", [Text(f"  {printable(line)}") for line in lines])
    parts += _section("Next", [Text(f"  {line}") for line in next_steps(job, pods)])
    return Group(*parts)


def current_failure(job: JobRecord) -> Failure | None:
    """Return why the job failed or, while it is unfinished, why its last failed attempt did."""
    return job.status.failure or (None if job.finished else job.status.last_failure)


def failed_rank(job: JobRecord, pods: Sequence[PodRecord]) -> int | None:
    """Return the rank that failed first, else a rank of a pod that failed; None if neither is known."""
    failure = current_failure(job)
    if failure is not None and failure.rank is not None:
        return failure.rank
    latest = max((pod.attempt for pod in pods), default=0)
    failed = [pod for pod in pods if pod.attempt == latest and pod.exit_code]
    return failed[0].index * processes_per_node(job) if failed else None


def next_steps(job: JobRecord, pods: Sequence[PodRecord]) -> list[str]:
    """Return what to do, and the command for it."""
    status, name, flags = job.status, job.name, job.flags
    steps = []
    hint = _hint(job)
    if hint:
        steps.append(printable(hint))
    if status.phase is None:
        steps += [
            "The operator has not seen this job yet: check that the operator runs.",
            f"kubectl get pods -A -l app.kubernetes.io/name=finetune-operator{flags.cluster}",
        ]
    elif status.phase == "Succeeded":
        steps.append(f"kubectl finetune pull {name} ./{name}{flags}")
    elif status.phase == "Failed":
        if job.status.failure is not None and job.status.failure.reason == Reason.HUB_PUSH_FAILED:
            return [*steps, f"kubectl finetune push {name}{flags}"]
        steps += [f"kubectl finetune logs {name} --rank {failed_rank(job, pods) or 0}{flags}"] if pods else []
        # A job of the same name would find the volume of this one, with its unfinished training, even after this one is deleted.
        submit = f"kubectl finetune submit FILE --name {_suggest_name(name)}{flags}"
        steps += ["Correct the file, and submit it under another name:", submit]
    elif status.phase == "Suspended" or (job.suspended and status.phase not in _RUNNING):
        steps.append(f"kubectl finetune resume {name}{flags}")
    elif pods and status.phase not in _RUNNING:
        waiting = next((pod for pod in pods if not pod.running and not pod.finished), None)
        command = f"kubectl describe pod {waiting.name}" if waiting else f"kubectl finetune logs {name} --follow"
        steps.append(f"{command}{flags}")
    else:
        steps.append(f"kubectl finetune watch {name}{flags}")
    return steps


def _suggest_name(name: str) -> str:
    suggestion = f"{name}-2"
    return suggestion if len(suggestion) <= names.MAX_NAME_LENGTH else "NAME"


def _hint(job: JobRecord) -> str | None:
    """Return the hint of the failure, of the reason why the job waits, or of a condition."""
    failure = current_failure(job)
    if failure is not None and failure.hint and job.phase not in _RUNNING:
        return failure.hint
    reasons = [job.status.reason, *(item.reason for item in find_problems(job.status))]
    return next((_HINTS[reason] for reason in reasons if reason in _HINTS), None)


def _details(job: JobRecord) -> list[str]:
    status = job.status
    lines = []
    failure = current_failure(job)
    if failure is not None:
        where = (("rank", failure.rank), ("node", failure.node), ("exit code", failure.exit_code))
        details = ", ".join(f"{name} {value}" for name, value in where if value is not None)
        title = "failure" if job.finished else "last failure"
        lines.append(f"{title}: {failure.reason}" + (f" ({details})" if details else "") + f": {failure.message}")
    if status.progress is not None:
        lines.append(f"progress: {format_progress(status.progress)}")
    if status.checkpoint is not None:
        lines.append(f"checkpoint: step {status.checkpoint.step}, {status.checkpoint.time}")
    if restarts := format_restarts(status):
        lines.append(f"restarts: {restarts}")
    if job.suspended and job.phase != "Suspended":
        lines.append("spec.suspend is true: the job is releasing its nodes")
    return [printable(line) for line in lines]


def _conditions(job: JobRecord) -> list[str]:
    return [printable(f"{item.type} ({item.reason}): {item.message}") for item in find_problems(job.status)]


def _findings(job: JobRecord) -> list[str]:
    return [printable(f"{finding.type}: {finding.message}") for finding in job.status.findings or ()]


def _section(title: str, body: Sequence[RenderableType]) -> list[RenderableType]:
    return [Text(f"\n{title}", style="bold"), *body] if body else []


def _attempts(job: JobRecord, now: datetime.datetime) -> list[RenderableType]:
    table = _table("", "ended", "after", "nodes", "step", "reason")
    for attempt in job.status.attempts or ():
        start, end = read_time(attempt.start_time), read_time(attempt.completion_time)
        lasted = format_duration(((end or now) - start).total_seconds()) if start is not None else ""
        step = "" if attempt.step is None else str(attempt.step)
        ended = attempt.completion_time or "in progress"
        why = ": ".join(text for text in (attempt.reason, attempt.message) if text)
        table.add_row(f"  {attempt.number}", ended, lasted, str(attempt.nodes), step, printable(why))
    return [table] if table.row_count else []


def _pods(pods: Sequence[PodRecord]) -> list[RenderableType]:
    table = _table("", "state", "exit code", "node", "why")
    for pod in pods:
        code = "" if pod.exit_code is None else str(pod.exit_code)
        table.add_row(f"  {pod.name}", pod.state, code, pod.node or "", printable(pod.message))
    return [table] if table.row_count else []


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
