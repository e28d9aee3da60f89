"""`kubectl finetune why`: on one screen what a job waits for or why it failed, and what to do."""

import datetime
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_api import names
from finetune_api.durations import format_duration
from finetune_api.files import printable
from finetune_api.reasons import VERDICTS
from finetune_client.logs import processes_per_node
from finetune_client.records import EventRecord, JobRecord, PodRecord, read_time
from finetune_client.texts import format_event, format_figures, format_restarts, format_state

_EVENTS = 6
_HINTS: dict[str | None, str] = {str(reason): verdict.hint for reason, verdict in VERDICTS.items()}
# Phases in which pods are on their way or run.
_ALIVE = ("Running", "Publishing")


def build_view(
    job: JobRecord,
    events: Sequence[EventRecord],
    pods: Sequence[PodRecord],
    log_tail: Sequence[str],
    now: datetime.datetime | None = None,
) -> RenderableType:
    """The screen. events: the earliest first. log_tail: last lines of the log of the process that failed, if there are."""
    now = now or datetime.datetime.now(datetime.UTC)
    parts: list[RenderableType] = [Text.assemble((f"{job.name}  ", "bold"), (format_state(job), "bold"))]
    parts += [Text(f"  {line}") for line in _facts(job)]
    parts += _section("Conditions", [Text(f"  {line}") for line in _conditions(job)])
    parts += _section("Attempts", _attempts(job, now))
    parts += _section("Pods", _pods(pods))
    parts += _section("Events", [Text(f"  {format_event(event)}") for event in events[-_EVENTS:]])
    failure = job.status.failure
    trace = failure.traceback.splitlines() if failure is not None and failure.traceback else list(log_tail)
    parts += _section("Last lines of the process that failed", [Text(f"  {printable(line)}") for line in trace])
    parts += _section("Next", [Text(f"  {line}") for line in next_steps(job, pods)])
    return Group(*parts)


def culprit(job: JobRecord, pods: Sequence[PodRecord]) -> int | None:
    """The rank whose log tells most of a failure: that which failed first, else one of a pod that failed."""
    failure = job.status.failure
    if failure is not None and failure.rank is not None:
        return failure.rank
    newest = max((pod.attempt for pod in pods), default=0)
    failed = [pod for pod in pods if pod.attempt == newest and pod.exit_code]
    return failed[0].index * processes_per_node(job) if failed else None


def next_steps(job: JobRecord, pods: Sequence[PodRecord]) -> list[str]:
    """What to do, and the command that helps with it."""
    status, name, place = job.status, job.name, job.place
    steps = []
    hint = _hint(job)
    if hint:
        steps.append(printable(hint))
    if status.phase is None:
        steps += [
            "The operator has not seen this job: look whether it runs.",
            f"kubectl get pods -A -l app.kubernetes.io/name=finetune-operator{place.cluster}",
        ]
    elif status.phase == "Succeeded":
        steps.append(f"kubectl finetune pull {name} ./{name}{place}")
    elif status.phase == "Failed":
        steps += [f"kubectl finetune logs {name} --rank {culprit(job, pods) or 0}{place}"] if pods else []
        # Under the same name, once this one is deleted, it would find the volume that is left, and the training in it.
        submit = f"kubectl finetune submit FILE --name {_other_name(name)}{place}"
        steps += ["Correct the file, and submit it under another name:", submit]
    elif status.phase == "Suspended" or (job.suspended and status.phase not in _ALIVE):
        steps.append(f"kubectl finetune resume {name}{place}")
    elif pods and status.phase not in _ALIVE:
        waiting = next((pod for pod in pods if not pod.running and not pod.finished), None)
        look = f"kubectl describe pod {waiting.name}" if waiting else f"kubectl finetune logs {name} --follow"
        steps.append(f"{look}{place}")
    else:
        steps.append(f"kubectl finetune watch {name}{place}")
    return steps


def _other_name(name: str) -> str:
    other = f"{name}-2"
    return other if len(other) <= names.MAX_NAME_LENGTH else "NAME"


def _hint(job: JobRecord) -> str | None:
    """Of a failure, of the reason for which the job waits, or of a condition."""
    if job.status.failure is not None and job.status.failure.hint:
        return job.status.failure.hint
    reasons = [job.status.reason, *(item.reason for item in job.status.conditions or () if item.status == "True")]
    return next((_HINTS[reason] for reason in reasons if reason in _HINTS), None)


def _facts(job: JobRecord) -> list[str]:
    status = job.status
    lines = []
    if status.failure is not None:
        failure = status.failure
        where = (("rank", failure.rank), ("node", failure.node), ("exit code", failure.exit_code))
        details = ", ".join(f"{name} {value}" for name, value in where if value is not None)
        lines.append(f"failure: {failure.reason}" + (f" ({details})" if details else "") + f": {failure.message}")
    if status.progress is not None:
        lines.append(f"progress: {format_figures(status.progress)}")
    if status.checkpoint is not None:
        lines.append(f"checkpoint: step {status.checkpoint.step}, {status.checkpoint.time}")
    if restarts := format_restarts(status):
        lines.append(f"restarts: {restarts}")
    if job.suspended and job.phase != "Suspended":
        lines.append("spec.suspend is true: it is to give its machines back")
    return [printable(line) for line in lines]


def _conditions(job: JobRecord) -> list[str]:
    found = [item for item in job.status.conditions or () if item.status == "True"]
    return [printable(f"{item.type} ({item.reason}): {item.message}") for item in found]


def _section(title: str, body: Sequence[RenderableType]) -> list[RenderableType]:
    return [Text(f"\n{title}", style="bold"), *body] if body else []


def _attempts(job: JobRecord, now: datetime.datetime) -> list[RenderableType]:
    table = _table("", "ended", "after", "nodes", "step", "reason")
    for attempt in job.status.attempts or ():
        start, end = read_time(attempt.start_time), read_time(attempt.completion_time)
        lasted = format_duration(((end or now) - start).total_seconds()) if start is not None else ""
        step = "" if attempt.step is None else str(attempt.step)
        ended = attempt.completion_time or "goes on"
        table.add_row(f"  {attempt.number}", ended, lasted, str(attempt.nodes), step, printable(attempt.reason or ""))
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
