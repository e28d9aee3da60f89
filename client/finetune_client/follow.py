"""Poll a job until it ends, also while the API server is unreachable for some time."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from finetune_client.errors import NoSuchJobError, UnreachableError
from finetune_client.records import EventRecord, JobRecord

# The operator writes progress at most every ten seconds, and everything else at once.
POLL_SECONDS = 2.0
_MAX_PAUSE_SECONDS = 15.0

# Waits for the given number of seconds.
Sleep = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class JobUpdate:
    """The result of one poll.

    job: None until a poll succeeds. events: the events since the last poll. problem: why the poll failed; job is then that of the
    last successful poll.
    """

    job: JobRecord | None
    events: Sequence[EventRecord] = ()
    problem: str | None = None


def follow(
    read_job: Callable[[], JobRecord],
    read_events: Callable[[JobRecord], Sequence[EventRecord]],
    sleep: Sleep,
) -> Iterator[JobUpdate]:
    """Poll until the job has ended; the last update holds the finished job.

    read_events: returns all events of a job so far, the earliest first. Raises NoSuchJobError if the job is deleted, or deleted
    and created again.
    """
    last: JobRecord | None = None
    seen: set[str] = set()
    pause = POLL_SECONDS
    while True:
        try:
            job = read_job()
            if last is not None and job.uid != last.uid:
                raise NoSuchJobError(
                    f"FineTuneJob {job.name} was deleted and created again: watch the new job if you mean that one"
                )
            events = [event for event in read_events(job) if event.uid not in seen]
        except UnreachableError as error:
            yield JobUpdate(last, problem=error.message)
            sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            continue
        seen.update(event.uid for event in events)
        last, pause = job, POLL_SECONDS
        yield JobUpdate(job, events)
        if job.finished:
            return
        sleep(pause)
