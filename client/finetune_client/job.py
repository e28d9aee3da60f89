"""A FineTuneJob of a cluster: its state, its logs, and what a user can do with it."""

import os
import pathlib
import time
from collections.abc import Callable, Iterator

from finetune_api import names
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_client import artifacts, logs, pull
from finetune_client.api import Api
from finetune_client.config_flags import NO_FLAGS, ConfigFlags
from finetune_client.errors import ForbiddenError, JobFailedError, JobTimeoutError, NotFoundError, RefusedError
from finetune_client.follow import JobUpdate, Sleep, follow
from finetune_client.formatting import format_state
from finetune_client.records import EventRecord, JobRecord, PodRecord, read_event, read_job, read_pod


class Job:
    """A FineTuneJob of a cluster. All methods raise ClientError, and NoSuchJobError after the job is deleted.

    flags: the flags that a printed command needs in addition to the name.
    """

    def __init__(self, api: Api, namespace: str, name: str, sleep: Sleep = time.sleep, flags: ConfigFlags = NO_FLAGS) -> None:
        self._api = api
        self._sleep = sleep
        self.namespace = namespace
        self.name = name
        self.flags = flags

    def __repr__(self) -> str:
        return f"Job({self.namespace}/{self.name})"

    def refresh(self) -> JobRecord:
        """Read the job from the API server."""
        return read_job(self._api.get(names.PLURAL, self.namespace, self.name), self.flags)

    @property
    def status(self) -> FineTuneJobStatus:
        """The current status, read from the API server."""
        return self.refresh().status

    def progress(self) -> Progress | None:
        """Return the current progress of the training; None before its first step."""
        return self.status.progress

    def events(self) -> list[EventRecord]:
        """Return the events of the job, the earliest first. Kubernetes usually deletes events after an hour."""
        return self.events_of(self.refresh())

    def events_of(self, job: JobRecord) -> list[EventRecord]:
        """Return the events of this job, without those of an earlier job of the same name.

        Returns an empty list if the user may not read events.
        """
        try:
            found = self._api.list("events", self.namespace, fieldSelector=f"involvedObject.uid={job.uid}")
        except ForbiddenError:
            return []
        return sorted((read_event(manifest) for manifest in found), key=lambda event: event.time)

    def pods(self) -> list[PodRecord]:
        """Return the training pods that still exist, sorted by attempt and index."""
        found = self._api.list("pods", self.namespace, labelSelector=f"{names.LABEL_JOB}={self.name}")
        return sorted((read_pod(manifest) for manifest in found), key=lambda pod: (pod.attempt, pod.index))

    def follow(self) -> Iterator[JobUpdate]:
        """Poll the job every few seconds until it has ended, also while the API server is unreachable."""
        return follow(self.refresh, self.events_of, self._sleep)

    def _poll(self, timeout: float | None, unmet: str, consequence: str) -> Iterator[JobRecord]:
        """Yield the job after each successful poll, until it has ended.

        timeout: in seconds, including the time of failed polls. Raises JobTimeoutError when it is over. unmet, consequence: parts
        of the error's message. They say what has not happened, and what does not change.
        """
        end = None if timeout is None else time.monotonic() + timeout

        def sleep(seconds: float) -> None:
            self._sleep(seconds if end is None else max(0.0, min(seconds, end - time.monotonic())))

        for update in follow(self.refresh, lambda job: (), sleep):
            job = update.job
            if job is not None and update.problem is None:
                yield job
                if job.finished:
                    return
            if end is not None and time.monotonic() >= end:
                state = update.problem or (f"it is {format_state(job)}" if job is not None else "")
                raise JobTimeoutError(f"{self.name} {unmet} within {timeout:g} s ({state}); {consequence}")

    def wait(self, timeout: float | None = None, on_progress: Callable[[Progress], None] | None = None) -> FineTuneJobStatus:
        """Wait until the job has succeeded; return its last status.

        timeout: in seconds, None for no limit. After it, raises JobTimeoutError, and the job continues. on_progress: called when
        the progress changes. Raises JobFailedError with the failure if the job fails.
        """
        last: Progress | None = None
        for job in self._poll(timeout, "has not ended", "the job continues"):
            if on_progress is not None and job.status.progress is not None and job.status.progress != last:
                on_progress(job.status.progress)
            last = job.status.progress
            if job.phase == "Succeeded":
                return job.status
        raise self._failed(job)

    def _failed(self, job: JobRecord) -> JobFailedError:
        failure, status = job.status.failure, job.status
        reason, message = (failure.reason, failure.message) if failure else (status.reason or "Failed", status.message or "")
        return JobFailedError(f"{self.name} failed, {reason}: {message}", failure, status)

    def logs(
        self,
        rank: int = 0,
        attempt: int | None = None,
        follow: bool = False,
        tail: int | None = None,
        on_problem: Callable[[str], None] = lambda problem: None,
    ) -> Iterator[str]:
        """Yield the lines of the log of a rank, without line ends.

        attempt: None means the latest attempt that has pods. follow: continue until the pod has ended. tail: begin with this many
        lines before the end of the pod's log. on_problem: called with a sentence while the log can't be read. If the pod is
        deleted, the end of its log is read from the volume of the job, as `pull` does.
        """
        job, pods = self.refresh(), self.pods()
        pod = logs.find_pod(job, pods, rank, attempt)
        read = self._api.stream_log
        limit = {"tailLines": str(tail)} if tail is not None else {}
        lines: Iterator[str]
        if isinstance(pod, str):
            kept = pull.read_log(self._api, job, pods, pod, self._sleep)
            lines = iter(kept[max(0, len(kept) - tail) :] if tail is not None else kept)
        elif follow:

            def is_over() -> bool:
                return read_pod(self._api.get("pods", self.namespace, pod.name)).finished

            def read_from(since: str | None) -> Iterator[str]:
                start = {"sinceTime": since} if since else limit
                return read(self.namespace, pod.name, follow="true", timestamps="true", **start)

            lines = logs.follow_log(read_from, is_over, self._sleep, on_problem)
        else:
            lines = read(self.namespace, pod.name, **limit)
        return logs.filter_rank(lines, rank) if logs.processes_per_node(job) > 1 else lines

    def suspend(self, wait: bool = False, timeout: float = 600) -> JobRecord:
        """Suspend the job: it saves a checkpoint and releases its nodes. Returns the updated job.

        wait: wait until it is suspended and none of its pods is left. Raises JobTimeoutError after the timeout, and RefusedError
        if the job ends first.
        """
        job = self._set_suspend(True)
        if not wait:
            return job
        for job in self._poll(timeout, "is not suspended", "spec.suspend stays true"):
            if any(item.type == "Suspended" and item.status == "True" for item in job.status.conditions or ()):
                return job
        raise RefusedError(f"{self.name} {'succeeded' if job.phase == 'Succeeded' else 'failed'} before it was suspended")

    def resume(self, wait: bool = False, timeout: float = 600) -> JobRecord:
        """Resume a suspended job. Returns the updated job.

        wait: wait until it trains or has succeeded. Raises JobTimeoutError after the timeout, and JobFailedError with the failure
        if the job fails first.
        """
        job = self._set_suspend(False)
        if not wait:
            return job
        for job in self._poll(timeout, "does not train", "spec.suspend stays false"):
            if job.phase in ("Running", "Publishing", "Succeeded"):
                return job
        raise self._failed(job)

    def _set_suspend(self, suspend: bool) -> JobRecord:
        change = {"spec": {"suspend": suspend}}
        return read_job(self._api.patch(names.PLURAL, self.namespace, self.name, change), self.flags)

    def pull(
        self,
        directory: str | os.PathLike[str],
        on_progress: Callable[[int, int, str], None] = lambda done, size, file: None,
        report: bool = False,
    ) -> pathlib.Path:
        """Download the finished model into a directory that does not exist yet or is empty; return the directory.

        Every file is verified. After an interruption, the next call continues where this one stopped. on_progress: called with
        the bytes received, the bytes in all, and the current file. report: instead of the model, download the files that
        `finetune report` reads; this works for a failed job, too. Needs the rights to create pods and to run commands in them.
        """
        target, artifact = pathlib.Path(directory), artifacts.TRAINING_RECORD if report else artifacts.MODEL
        pull.pull_artifact(self._api, self.refresh(), self.pods(), artifact, target, on_progress, self._sleep)
        return target

    def delete(self, missing_ok: bool = False) -> None:
        """Delete the job and its pods. spec.output.retention decides whether its volume is deleted, too."""
        try:
            self._api.delete(names.PLURAL, self.namespace, self.name, self.refresh().uid)
        except NotFoundError:
            if not missing_ok:
                raise
