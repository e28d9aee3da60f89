"""The Python client: FineTuneJobs of one namespace, and one of them."""

import difflib
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune_api import names
from finetune_api.files import read_job as read_file
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import FineTuneJob, Metadata, parse_job, validate_name
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_client import logs, pull
from finetune_client.api import Api
from finetune_client.connection import connect
from finetune_client.errors import ForbiddenError, JobFailedError, JobTimeoutError, NoSuchJobError, NotFoundError, RefusedError
from finetune_client.follow import Sighting, Sleep, follow
from finetune_client.place import HERE, Place, build_place
from finetune_client.records import EventRecord, JobRecord, PodRecord, read_event, read_job, read_pod
from finetune_client.texts import format_state


class FineTune:
    """The FineTuneJobs of a cluster, as they are reached by the kubeconfig or, in a pod, by its service account.

    namespace: that of the kubeconfig's context, or of the pod, if None. sleep: waits so many seconds between two looks at the
    cluster. All methods raise ClientError.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        context: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        sleep: Sleep = time.sleep,
    ) -> None:
        connection = connect(kubeconfig, context)
        self.api = Api(connection.client)
        self.namespace = namespace or connection.namespace
        self._sleep = sleep
        self._namespace_is_asked_for = namespace is not None
        self._place_of = functools.partial(
            build_place, own_namespace=connection.namespace, context=context, kubeconfig=kubeconfig
        )

    def submit(
        self,
        job: FineTuneJob | FineTuneJobSpec | Mapping[str, Any] | str | os.PathLike[str],
        name: str | None = None,
    ) -> "Job":
        """Create a job: from a FineTuneJob, a manifest as a mapping, the path of a file with one, or a spec and a name.

        name: instead of that in the manifest. Raises FineTuneError(InvalidSpec), before anything is asked of the cluster, for
        what is not valid; NameTakenError where a job of that name is there.
        """
        manifest = self.prepare(job, name)
        namespace = manifest["metadata"]["namespace"]
        created = self.api.create(names.PLURAL, namespace, manifest)
        return Job(self.api, namespace, created["metadata"]["name"], self._sleep, self._place_of(namespace))

    def job(self, name: str) -> "Job":
        """A job that is there; NoSuchJobError names one like it where it is not."""
        job = Job(self.api, self.namespace, name, self._sleep, self._place_of(self.namespace))
        try:
            job.refresh()
        except NoSuchJobError as error:
            known = [record.name for record in self.list()]
            near = difflib.get_close_matches(name, known, n=3)
            hint = (
                f"; there is {' and '.join(near)}" if near else f"; `kubectl finetune list{job.place}` shows those that are there"
            )
            raise NoSuchJobError(error.message + hint) from None
        return job

    def list(self, all_namespaces: bool = False) -> list[JobRecord]:
        """The jobs of the namespace, or of all, by namespace and name."""
        found = self.api.list(names.PLURAL, None if all_namespaces else self.namespace)
        jobs = [read_job(manifest, self._place_of(manifest["metadata"]["namespace"])) for manifest in found]
        return sorted(jobs, key=lambda job: (job.namespace, job.name))

    def prepare(
        self,
        job: FineTuneJob | FineTuneJobSpec | Mapping[str, Any] | str | os.PathLike[str],
        name: str | None = None,
    ) -> dict[str, Any]:
        """The manifest that ``submit`` creates: what was written, and nothing that follows from a default.

        Asks the cluster nothing; raises FineTuneError(InvalidSpec) for what is not valid.
        """
        if isinstance(job, FineTuneJobSpec):
            if name is None:
                raise FineTuneError(Reason.INVALID_SPEC, "a spec alone has no name: write submit(spec, name=…)")
            metadata = Metadata(name=name)
            job = FineTuneJob(api_version="finetune.dev/v1alpha1", kind="FineTuneJob", metadata=metadata, spec=job)
        elif isinstance(job, Mapping):
            job = parse_job(job)
        elif not isinstance(job, FineTuneJob):
            job = read_file(pathlib.Path(job))
        validate_name(name or job.metadata.name)
        written: dict[str, Any] = job.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        given = written["metadata"].get("namespace")
        if given is not None and self._namespace_is_asked_for and given != self.namespace:
            raise FineTuneError(
                Reason.INVALID_SPEC,
                f"metadata.namespace is {given}, and {self.namespace} is asked for: remove one of the two",
            )
        written["metadata"] |= {"name": name or job.metadata.name, "namespace": given or self.namespace}
        return written


class Job:
    """One FineTuneJob of a cluster. All methods raise ClientError; NoSuchJobError once it is deleted.

    place: what a command that is printed needs besides the name.
    """

    def __init__(self, api: Api, namespace: str, name: str, sleep: Sleep = time.sleep, place: Place = HERE) -> None:
        self._api = api
        self._sleep = sleep
        self.namespace = namespace
        self.name = name
        self.place = place

    def __repr__(self) -> str:
        return f"Job({self.namespace}/{self.name})"

    def refresh(self) -> JobRecord:
        """The job as it is now."""
        return read_job(self._api.get(names.PLURAL, self.namespace, self.name), self.place)

    @property
    def status(self) -> FineTuneJobStatus:
        """The status as it is now."""
        return self.refresh().status

    def progress(self) -> Progress | None:
        """How far the training is now; None before its first step."""
        return self.status.progress

    def events(self) -> list[EventRecord]:
        """What happened to the job, the earliest first; Kubernetes forgets events after an hour, as a rule."""
        return self.events_of(self.refresh())

    def events_of(self, job: JobRecord) -> list[EventRecord]:
        """The same for a job that was just read: an earlier one of its name had events, too.

        None for whoever may not read any.
        """
        try:
            found = self._api.list("events", self.namespace, fieldSelector=f"involvedObject.uid={job.uid}")
        except ForbiddenError:
            return []
        return sorted((read_event(manifest) for manifest in found), key=lambda event: event.time)

    def pods(self) -> list[PodRecord]:
        """The training pods that are left, by attempt and place in the gang."""
        found = self._api.list("pods", self.namespace, labelSelector=f"{names.LABEL_JOB}={self.name}")
        return sorted((read_pod(manifest) for manifest in found), key=lambda pod: (pod.attempt, pod.index))

    def follow(self) -> Iterator[Sighting]:
        """Look at the job every few seconds until it has ended, also across an API server that is away."""
        return follow(self.refresh, self.events_of, self._sleep)

    def _looks(self, timeout: float | None, late: str, still: str) -> Iterator[JobRecord]:
        """The job at each look at which it was seen, until it has ended.

        timeout: in seconds, also where nothing is seen; JobTimeoutError after it, which says what is ``late``, and what holds
        ``still``.
        """
        end = None if timeout is None else time.monotonic() + timeout

        def sleep(seconds: float) -> None:
            self._sleep(seconds if end is None else max(0.0, min(seconds, end - time.monotonic())))

        for sighting in follow(self.refresh, lambda job: (), sleep):
            job = sighting.job
            if job is not None and sighting.problem is None:
                yield job
                if job.finished:
                    return
            if end is not None and time.monotonic() >= end:
                where = sighting.problem or (f"it is {format_state(job)}" if job is not None else "")
                raise JobTimeoutError(f"{self.name} {late} within {timeout:g} s ({where}); {still}")

    def wait(self, timeout: float | None = None, on_progress: Callable[[Progress], None] | None = None) -> FineTuneJobStatus:
        """Wait until the job has succeeded; its last status.

        timeout: in seconds, without end if None; JobTimeoutError after it, and the job goes on. on_progress: called when the
        progress has changed. Raises JobFailedError with the failure when the job fails.
        """
        last: Progress | None = None
        for job in self._looks(timeout, "has not ended", "it goes on"):
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
        tell: Callable[[str], None] = lambda problem: None,
    ) -> Iterator[str]:
        """Lines of the log of a rank, without their ends.

        attempt: the newest that has pods if None. follow: go on until the pod has ended. tail: begin with so
        many lines of the pod before the end. tell: is told what holds the log up.
        """
        job = self.refresh()
        pod = logs.choose_pod(job, self.pods(), rank, attempt)
        read = self._api.stream_log
        limit = {"tailLines": str(tail)} if tail is not None else {}
        if follow:

            def is_over() -> bool:
                return read_pod(self._api.get("pods", self.namespace, pod.name)).finished

            def read_from(since: str | None) -> Iterator[str]:
                more = {"sinceTime": since} if since else limit
                return read(self.namespace, pod.name, follow="true", timestamps="true", **more)

            lines = logs.follow_log(read_from, is_over, self._sleep, tell)
        else:
            lines = read(self.namespace, pod.name, **limit)
        return logs.select_rank(lines, rank) if logs.processes_per_node(job) > 1 else lines

    def suspend(self, wait: bool = False, timeout: float = 600) -> JobRecord:
        """Have the job save a checkpoint and give its machines back; the job as it is then.

        wait: until it has, or JobTimeoutError. Raises RefusedError when it ends meanwhile.
        """
        job = self._set_suspend(True)
        if not wait:
            return job
        for job in self._looks(timeout, "is not suspended", "spec.suspend stays true"):
            if job.phase == "Suspended":
                return job
        raise RefusedError(f"{self.name} {'succeeded' if job.phase == 'Succeeded' else 'failed'} before it was suspended")

    def resume(self, wait: bool = False, timeout: float = 600) -> JobRecord:
        """Have a suspended job go on; the job as it is then.

        wait: until it trains, or is through, or JobTimeoutError. Raises JobFailedError with the failure when it fails meanwhile.
        """
        job = self._set_suspend(False)
        if not wait:
            return job
        for job in self._looks(timeout, "does not train", "spec.suspend stays false"):
            if job.phase in ("Running", "Publishing", "Succeeded"):
                return job
        raise self._failed(job)

    def _set_suspend(self, suspend: bool) -> JobRecord:
        change = {"spec": {"suspend": suspend}}
        return read_job(self._api.patch(names.PLURAL, self.namespace, self.name, change), self.place)

    def pull(
        self,
        directory: str | os.PathLike[str],
        on_progress: Callable[[int, int, str], None] = lambda done, size, file: None,
        report: bool = False,
    ) -> pathlib.Path:
        """Fetch the finished model into a directory that is not there yet, or empty; the directory.

        Every file is verified. Broken off, the next call goes on where this one ended. on_progress: bytes so far, bytes in all,
        the file that comes. report: in place of the model what `finetune report` reads, also of a job that failed. Needs the
        right to create pods and to run commands in them.
        """
        target, part = pathlib.Path(directory), pull.RECORD if report else pull.MODEL
        pull.pull_part(self._api, self.refresh(), self.pods(), part, target, on_progress, self._sleep)
        return target

    def delete(self, missing_ok: bool = False) -> None:
        """Delete the job and its pods; what becomes of its volume spec.output.retention says."""
        try:
            self._api.delete(names.PLURAL, self.namespace, self.name, self.refresh().uid)
        except NotFoundError:
            if not missing_ok:
                raise
