"""Read the log of one rank: find its pod or what is kept of its log, select its lines, reconnect after a broken connection."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from finetune_api import names
from finetune_client.errors import NotFoundError, RefusedError, UnreachableError
from finetune_client.follow import Sleep
from finetune_client.records import JobRecord, PodRecord

# The prefix of a trainer's log line: time, process, level.
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\dT\S+ (?:rank (?P<rank>\d+)|launcher) ")
_STEP = re.compile(r"\bstep (\d+) of \d+: loss (-?[0-9.]+)")
_PAUSE_SECONDS = 2.0


def find_pod(job: JobRecord, pods: Sequence[PodRecord], rank: int, attempt: int | None) -> PodRecord | str:
    """Return the pod that runs a rank. If the pods of that attempt are deleted, return the name of the file with what is kept.

    attempt: None means the latest attempt that has pods. Raises NotFoundError.
    """
    latest = max([job.status.attempt or 0, *(pod.attempt for pod in pods)])
    if attempt is None and not pods:
        kept = f"; to see what is kept of its last log: kubectl finetune logs {job.name} --attempt {latest}{job.flags}"
        raise NotFoundError(f"{job.name} has no pods: {job.status.message or f'it is {job.phase}'}{kept if latest else ''}")
    number = attempt if attempt is not None else max(pod.attempt for pod in pods)
    if number > latest:
        raise NotFoundError(f"{job.name} has no attempt {number}: the latest is {latest}")
    index = rank // processes_per_node(job)
    present = sorted((pod for pod in pods if pod.attempt == number), key=lambda pod: pod.created)
    found = [pod for pod in present if pod.index == index]
    if found:
        return found[-1]
    nodes = next((item.nodes for item in job.status.attempts or () if item.number == number), 0)
    count = len({pod.index for pod in present}) or nodes  # 0 if the status no longer shows the attempt
    if attempt is None or 0 < count <= index:
        ranks = count * processes_per_node(job)
        raise NotFoundError(f"attempt {number} has no rank {rank}: the number of ranks is {ranks}, and the first is 0")
    return f"{names.pod_host_name(job.name, number, index)}.log"


def processes_per_node(job: JobRecord) -> int:
    """Return the number of processes per pod. The ranks of a pod are consecutive."""
    return job.spec.processes_per_node if job.spec is not None else 1


def filter_rank(lines: Iterable[str], rank: int) -> Iterator[str]:
    """Yield the lines of the rank and of the launcher.

    A line without a prefix, as in a traceback, has the source of the line before it.
    """
    selected = True  # The source of lines before the first prefix is unknown, so they are shown.
    for line in lines:
        has_prefix, source = _parse_source(line)
        if has_prefix:
            selected = source in (None, rank)
        if selected:
            yield line


def _parse_source(line: str) -> tuple[bool, int | None]:
    """Return whether the line names the process that wrote it, and its rank; None for the launcher, which logs for the pod."""
    if match := _PREFIX.match(line):
        return True, int(match["rank"]) if match["rank"] else None
    if line.startswith("{"):  # spec.logging.format: JSON
        try:
            entry = json.loads(line)
        except ValueError:
            return False, None
        rank = entry.get("rank")
        return True, rank if isinstance(rank, int) else None
    return False, None


def read_losses(lines: Iterable[str]) -> list[tuple[int, float]]:
    """Return (step, loss) of each log line that reports a loss."""
    return [(int(match[1]), float(match[2])) for line in lines if (match := _STEP.search(line))]


def follow_log(
    read: Callable[[str | None], Iterable[str]],
    is_over: Callable[[], bool],
    sleep: Sleep,
    on_problem: Callable[[str], None],
) -> Iterator[str]:
    """Yield each line of a pod's log once, until its container has ended.

    read: reads the log from a time in RFC 3339 on, or from the start if None; each line begins with its timestamp. is_over:
    whether the container has ended. on_problem: called with a sentence while the log can't be read.
    """
    last = ""
    while True:
        try:
            over = is_over()  # Checked before reading: a log that is read after the end is complete.
            for line in read(last or None):
                stamp, _, text = line.partition(" ")
                # A repeated request also returns earlier lines, back to the full second before the last line. Skip them.
                if _normalize(stamp) > _normalize(last):
                    last = stamp
                    yield text
            if over:
                return
        except UnreachableError as error:
            on_problem(error.message)
        except RefusedError as error:
            if "waiting to start" not in error.message and "ContainerCreating" not in error.message:
                raise
            on_problem(f"the pod has not started yet: {error.message}")
        sleep(_PAUSE_SECONDS)


def _normalize(stamp: str) -> str:
    """Return a timestamp with nine digits after the point, because some runtimes leave out trailing zeros."""
    match = re.match(r"([^.Z+]+)(?:\.(\d+))?", stamp)
    return f"{match[1]}.{(match[2] or '').ljust(9, '0')}" if match else ""
