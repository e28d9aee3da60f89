"""The Python client for FineTuneJobs, for example in a notebook.

from finetune_client import FineTune

job = FineTune().submit("job.yaml")
job.wait(on_progress=print)
job.pull("my-model")
"""

from finetune_api.resource import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_client.client import FineTune
from finetune_client.errors import (
    ClientError,
    CommandError,
    ForbiddenError,
    JobFailedError,
    JobTimeoutError,
    NameTakenError,
    NoSuchJobError,
    NotConfiguredError,
    NotFoundError,
    NotInstalledError,
    PullError,
    PutError,
    RefusedError,
    UnreachableError,
)
from finetune_client.job import Job
from finetune_client.put import NewClaim, Placed, PodOptions
from finetune_client.records import EventRecord, JobRecord, PodRecord

__all__ = [
    "ClientError",
    "CommandError",
    "EventRecord",
    "FineTune",
    "FineTuneJob",
    "FineTuneJobSpec",
    "FineTuneJobStatus",
    "ForbiddenError",
    "Job",
    "JobFailedError",
    "JobRecord",
    "JobTimeoutError",
    "NameTakenError",
    "NewClaim",
    "NoSuchJobError",
    "NotConfiguredError",
    "NotFoundError",
    "NotInstalledError",
    "Placed",
    "PodOptions",
    "PodRecord",
    "Progress",
    "PullError",
    "PutError",
    "RefusedError",
    "UnreachableError",
]
