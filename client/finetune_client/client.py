"""The Python client: FineTune for the FineTuneJobs of a namespace."""

import difflib
import functools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from finetune_api import names
from finetune_api.files import read_job as read_file
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.resource import FineTuneJob, Metadata, parse_job, validate_name
from finetune_api.spec import FineTuneJobSpec
from finetune_client.api import Api
from finetune_client.config_flags import build_config_flags
from finetune_client.connection import connect
from finetune_client.errors import NoSuchJobError
from finetune_client.follow import Sleep
from finetune_client.job import Job
from finetune_client.put import DEFAULT_POD, NewClaim, Placed, PodOptions, TransferProgress, put_files
from finetune_client.records import JobRecord, read_job


class FineTune:
    """Access to the FineTuneJobs of a cluster, with the kubeconfig or, in a pod, with its service account.

    namespace: None means that of the kubeconfig's context, or of the pod. sleep: waits the given seconds between two polls. All
    methods raise ClientError.
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
        self._namespace_is_explicit = namespace is not None
        self._flags_for = functools.partial(
            build_config_flags, default_namespace=connection.namespace, context=context, kubeconfig=kubeconfig
        )

    def submit(
        self,
        job: FineTuneJob | FineTuneJobSpec | Mapping[str, Any] | str | os.PathLike[str],
        name: str | None = None,
    ) -> Job:
        """Create a job from a FineTuneJob, a manifest as a mapping, the path of a manifest file, or a spec and a name.

        name: replaces metadata.name. Raises FineTuneError(InvalidSpec) for an invalid job, before any request to the cluster, and
        NameTakenError if a job of that name exists.
        """
        manifest = self.prepare(job, name)
        namespace = manifest["metadata"]["namespace"]
        created = self.api.create(names.PLURAL, namespace, manifest)
        return Job(self.api, namespace, created["metadata"]["name"], self._sleep, self._flags_for(namespace))

    def job(self, name: str) -> Job:
        """Return an existing job. If it does not exist, NoSuchJobError suggests similar names."""
        job = Job(self.api, self.namespace, name, self._sleep, self._flags_for(self.namespace))
        try:
            job.refresh()
        except NoSuchJobError as error:
            known = [record.name for record in self.list()]
            similar = difflib.get_close_matches(name, known, n=3)
            existing = f"`kubectl finetune list{job.flags}` shows the existing ones"
            hint = f"; similar names: {', '.join(similar)}" if similar else f"; {existing}"
            raise NoSuchJobError(error.message + hint) from None
        return job

    def list(self, all_namespaces: bool = False) -> list[JobRecord]:
        """Return the jobs of the namespace, or of all namespaces, sorted by namespace and name."""
        found = self.api.list(names.PLURAL, None if all_namespaces else self.namespace)
        jobs = [read_job(manifest, self._flags_for(manifest["metadata"]["namespace"])) for manifest in found]
        return sorted(jobs, key=lambda job: (job.namespace, job.name))

    def prepare(
        self,
        job: FineTuneJob | FineTuneJobSpec | Mapping[str, Any] | str | os.PathLike[str],
        name: str | None = None,
    ) -> dict[str, Any]:
        """Return the manifest that ``submit`` creates: the given fields only, without defaults.

        Sends no request. Raises FineTuneError(InvalidSpec) for an invalid job.
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
        if given is not None and self._namespace_is_explicit and given != self.namespace:
            raise FineTuneError(
                Reason.INVALID_SPEC,
                f"metadata.namespace is {given}, but namespace {self.namespace} is selected: remove one of the two",
            )
        written["metadata"] |= {"name": name or job.metadata.name, "namespace": given or self.namespace}
        return written

    def put(
        self,
        source: str | os.PathLike[str],
        target: str,
        create: NewClaim | None = None,
        replace: bool = False,
        pod: PodOptions = DEFAULT_POD,
        on_progress: TransferProgress = lambda done, size, file: None,
    ) -> Placed:
        """Copy a file or a folder of this machine to CLAIM[/PATH], and verify it there.

        Without a path, or with one that ends in "/", the source keeps its name. create: create the claim if it does not exist.
        replace: replace a PATH that exists and differs. on_progress: called with the bytes done, the bytes in all, and the
        current file. Needs the rights to create pods and to run commands in them.
        """
        files = pathlib.Path(source)
        return put_files(self.api, self.namespace, files, target, create, replace, pod, on_progress, self._sleep)
