"""What can go wrong between a client and its cluster. Each error is one sentence that says what is wrong and what to do.

ClientError
├── NotConfiguredError    no kubeconfig, no such context in it, and no service account either
├── UnreachableError      the API server does not answer, or can't at the moment: the same again may succeed
├── ForbiddenError        the API server knows who asks, or does not, and refuses
├── NotInstalledError     the cluster has no FineTuneJobs
├── NotFoundError         there is no such object
│   └── NoSuchJobError    there is no such FineTuneJob, or it is another one by now
├── NameTakenError        an object of that name is there already
├── RefusedError          what was asked is refused: an invalid object, a quota, a policy of the site, a job that has ended
├── JobFailedError        the job itself failed; carries its failure
├── JobTimeoutError       the job did not come so far in time
└── PullError             the model, or the record of the training, can't be fetched
"""

from finetune_api.status import Failure, FineTuneJobStatus


class ClientError(Exception):
    """The root of all. message: one sentence for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotConfiguredError(ClientError):
    """Nothing says which cluster is meant."""


class UnreachableError(ClientError):
    """The API server does not answer, or can't at the moment."""


class ForbiddenError(ClientError):
    """The right is missing, or the credentials are no good."""


class NotInstalledError(ClientError):
    """The cluster does not know the kind FineTuneJob."""


class NotFoundError(ClientError):
    """The object is not there."""


class NoSuchJobError(NotFoundError):
    """The FineTuneJob is not there, or is another one of the same name by now."""


class NameTakenError(ClientError):
    """An object of that name is there already."""


class RefusedError(ClientError):
    """The object or the request is refused as it is."""


class JobFailedError(ClientError):
    """The job ended in the phase Failed. failure: why; None where its status does not say. status: its last one."""

    def __init__(self, message: str, failure: Failure | None, status: FineTuneJobStatus) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status


class JobTimeoutError(ClientError, TimeoutError):
    """The job did not come so far in the time that was given; it goes on."""


class PullError(ClientError):
    """The output of a job can't be fetched; what has come already is kept."""
