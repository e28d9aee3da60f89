"""A job as it goes on: asked for every few seconds, also across an API server that is away for a while."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from finetune_client.errors import NoSuchJobError, UnreachableError
from finetune_client.records import EventRecord, JobRecord

# The operator writes progress at most every ten seconds, and everything else at once.
POLL_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 15.0

# Waits so many seconds.
Sleep = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Sighting:
    """What was seen at one look. events: those that are new. problem: why nothing could be seen; job is the last one then."""

    job: JobRecord | None
    events: Sequence[EventRecord] = ()
    problem: str | None = None


def follow(
    observe_job: Callable[[], JobRecord],
    observe_events: Callable[[JobRecord], Sequence[EventRecord]],
    sleep: Sleep,
) -> Iterator[Sighting]:
    """Look until the job has ended; the last sighting is that of its end.

    observe_events: the events of a job so far, the earliest first. Raises NoSuchJobError when the job is deleted, or made anew.
    """
    last: JobRecord | None = None
    told: set[str] = set()
    pause = POLL_SECONDS
    while True:
        try:
            job = observe_job()
            if last is not None and job.uid != last.uid:
                raise NoSuchJobError(
                    f"FineTuneJob {job.name} was deleted and made anew meanwhile: watch the new one if it is meant"
                )
            events = [event for event in observe_events(job) if event.uid not in told]
        except UnreachableError as error:
            yield Sighting(last, problem=error.message)
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            continue
        told.update(event.uid for event in events)
        last, pause = job, POLL_SECONDS
        yield Sighting(job, events)
        if job.finished:
            return
        sleep(pause)
