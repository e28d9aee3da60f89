"""Format a job's data as lines that all commands share. Text from the cluster is made safe to print."""

from collections.abc import Mapping

from finetune_api.files import printable
from finetune_api.status import PROBLEMS, Condition, FineTuneJobStatus, Progress
from finetune_client.records import EventRecord, JobRecord


def format_progress(progress: Progress) -> str:
    """Return step, percent, loss, throughput and time left."""
    total = f"/{progress.total_steps}" if progress.total_steps else ""
    parts = [f"step {progress.step}{total}" + (f" ({progress.percent}%)" if progress.percent is not None else "")]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.samples_per_second is not None:
        parts.append(f"{progress.samples_per_second:.1f} samples/s")
    if progress.remaining:
        parts.append(f"{progress.remaining} left")
    return "  ".join(parts)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return the metrics of an evaluation."""
    return "  ".join(f"{printable(name)} {value:.4f}" for name, value in metrics.items())


def format_event(event: EventRecord) -> str:
    """Return time, reason and message, in the local time zone."""
    return printable(f"{event.time.astimezone():%H:%M:%S}  {event.reason}: {event.message}")


def format_state(job: JobRecord) -> str:
    """Return phase, reason and message."""
    status = job.status
    reason = f" ({status.reason})" if status.reason and status.reason != job.phase else ""
    message = status.message or ("" if status.phase else "the operator has not seen it yet")
    return printable(f"{job.phase}{reason}" + (f": {message}" if message else ""))


def format_restarts(status: FineTuneJobStatus) -> str:
    """Return how often the job was restarted; empty if it was not."""
    restarts = status.restarts
    if restarts is None:
        return ""
    counts = ((restarts.failures, "after failures"), (restarts.preemptions, "after preemptions"), (restarts.in_place, "in place"))
    return ", ".join(f"{count} {kind}" for count, kind in counts if count)


def format_problems(status: FineTuneJobStatus) -> list[str]:
    """Return the conditions that report a problem of an unfinished job."""
    return [printable(f"{item.type}: {item.message}") for item in find_problems(status)]


def find_problems(status: FineTuneJobStatus) -> list[Condition]:
    """Return the conditions that need attention."""
    return [item for item in status.conditions or () if item.status == "True" and item.type in PROBLEMS]
