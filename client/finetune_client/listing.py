"""`kubectl finetune list`: one line per job."""

import datetime
from collections.abc import Sequence

from finetune_api.durations import format_duration
from finetune_client.records import JobRecord, read_time

_HEADER = ("NAME", "PHASE", "REASON", "PROGRESS", "STEP", "LOSS", "LEFT", "RESTARTS", "AGE")
_GAP = "   "


def sort_jobs(jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """Return the unfinished jobs, by namespace and name; then the finished ones, the most recent first."""
    unfinished = [job for job in jobs if not job.finished]
    finished = [job for job in jobs if job.finished]
    finished.sort(key=lambda job: (read_time(job.status.completion_time) or job.created, job.name), reverse=True)
    return sorted(unfinished, key=lambda job: (job.namespace, job.name)) + finished


def build_table(jobs: Sequence[JobRecord], with_namespace: bool, now: datetime.datetime | None = None) -> str:
    """Return the columns as kubectl shows them, without colours, because scripts read them, too."""
    now = now or datetime.datetime.now(datetime.UTC)
    rows = [_HEADER, *(_row(job, now) for job in jobs)]
    if with_namespace:
        namespaces = ("NAMESPACE", *(job.namespace for job in jobs))
        rows = [(namespace, *row) for namespace, row in zip(namespaces, rows, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(job: JobRecord, now: datetime.datetime) -> tuple[str, ...]:
    progress, restarts = job.status.progress, job.status.restarts
    return (
        job.name,
        job.phase,
        job.status.reason or "",
        (progress.display if progress else None) or "",
        str(progress.step) if progress else "",
        f"{progress.loss:g}" if progress and progress.loss is not None else "",
        (progress.remaining if progress and not job.finished else None) or "",
        str(restarts.total) if restarts else "0",
        format_duration((now - job.created).total_seconds()),
    )
