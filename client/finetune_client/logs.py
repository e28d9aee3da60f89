"""The log of one rank: which pod it is in, which lines are its own, and how a broken connection is taken up again."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from finetune_client.errors import NotFoundError, RefusedError, UnreachableError
from finetune_client.follow import Sleep
from finetune_client.records import JobRecord, PodRecord

# How the trainer begins a line: time, who, level.
_SPEAKER = re.compile(r"^\d{4}-\d\d-\d\dT\S+ (?:rank (?P<rank>\d+)|launcher) ")
_STEP = re.compile(r"\bstep (\d+) of \d+: loss (-?[0-9.]+)")
_PAUSE_SECONDS = 2.0


def choose_pod(job: JobRecord, pods: Sequence[PodRecord], rank: int, attempt: int | None) -> PodRecord:
    """The pod in which a rank runs; attempt: the newest that has pods if None. Raises NotFoundError with a sentence."""
    if not pods:
        raise NotFoundError(f"{job.name} has no pods: {job.status.message or f'it is {job.phase}'}")
    number = attempt if attempt is not None else max(pod.attempt for pod in pods)
    gang = sorted((pod for pod in pods if pod.attempt == number), key=lambda pod: pod.created)
    if not gang:
        present = ", ".join(str(found) for found in sorted({pod.attempt for pod in pods}))
        raise NotFoundError(
            f"the pods of attempt {number} are gone, and their logs with them; there are those of attempt {present}. "
            f"`kubectl finetune why {job.name}{job.place}` shows how each attempt ended"
        )
    index = rank // processes_per_node(job)
    found = [pod for pod in gang if pod.index == index]
    if not found:
        ranks = len({pod.index for pod in gang}) * processes_per_node(job)
        raise NotFoundError(f"attempt {number} has no rank {rank}: it has {ranks}, from 0")
    return found[-1]


def processes_per_node(job: JobRecord) -> int:
    """Processes of each pod; they have consecutive ranks."""
    return job.spec.processes_per_node if job.spec is not None else 1


def select_rank(lines: Iterable[str], rank: int) -> Iterator[str]:
    """Lines of that rank, and what follows them without a name of its own, as the lines of a traceback do."""
    speaks = True  # what comes before the first named line may be anybody's
    for line in lines:
        known, speaker = _speaker(line)
        if known:
            speaks = speaker in (None, rank)
        if speaks:
            yield line


def _speaker(line: str) -> tuple[bool, int | None]:
    """Whether the line says who wrote it, and the rank; None for the launcher, which speaks for all of its pod."""
    if match := _SPEAKER.match(line):
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
    """(step, loss) of the lines of a log that tell of them."""
    return [(int(match[1]), float(match[2])) for line in lines if (match := _STEP.search(line))]


def follow_log(
    read: Callable[[str | None], Iterable[str]],
    is_over: Callable[[], bool],
    sleep: Sleep,
    tell: Callable[[str], None],
) -> Iterator[str]:
    """The lines of a pod until its container has ended, each once.

    read: from that second on, as RFC 3339, or from the start; each line begins with its time. is_over: whether the container has
    ended. tell: is told when the connection is lost.
    """
    last = ""
    while True:
        try:
            over = is_over()  # asked first: what is read after the end is all
            for line in read(last or None):
                stamp, _, text = line.partition(" ")
                moment = _sortable(stamp)
                # What is asked for again begins with the second of the last line.
                if moment > _sortable(last):
                    last = stamp
                    yield text
            if over:
                return
        except UnreachableError as error:
            tell(error.message)
        except RefusedError as error:
            if "waiting to start" not in error.message and "ContainerCreating" not in error.message:
                raise
            tell(f"the pod has not started yet: {error.message}")
        sleep(_PAUSE_SECONDS)


def _sortable(stamp: str) -> str:
    """A time with all its nine digits after the point, as some runtimes leave zeros out."""
    match = re.match(r"([^.Z+]+)(?:\.(\d+))?", stamp)
    return f"{match[1]}.{(match[2] or '').ljust(9, '0')}" if match else ""
