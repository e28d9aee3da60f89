"""The Python client for FineTuneJobs, for example in a notebook.

from finetune_client import FineTune

job = FineTune().submit("job.yaml")
job.wait(on_progress=print)
job.pull("my-model")
"""

from finetune_api.resource import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_client.client import FineTune, Job
from finetune_client.errors import (
    ClientError,
    ForbiddenError,
    JobFailedError,
    JobTimeoutError,
    NameTakenError,
    NoSuchJobError,
    NotConfiguredError,
    NotFoundError,
    NotInstalledError,
    PullError,
    RefusedError,
    UnreachableError,
)
from finetune_client.records import EventRecord, JobRecord, PodRecord

__all__ = [
    "ClientError",
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
    "NoSuchJobError",
    "NotConfiguredError",
    "NotFoundError",
    "NotInstalledError",
    "PodRecord",
    "Progress",
    "PullError",
    "RefusedError",
    "UnreachableError",
]
