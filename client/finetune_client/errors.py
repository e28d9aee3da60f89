"""The errors of the client. Each message is one sentence that says what is wrong and what to do.

ClientError
├── NotConfiguredError    no kubeconfig, no such context in it, and no service account either
├── UnreachableError      the API server does not answer, or can't at the moment; a retry may succeed
├── ForbiddenError        the API server rejects the credentials, or the user lacks the right
├── NotInstalledError     the cluster has no CRD for FineTuneJobs
├── NotFoundError         the object does not exist
│   └── NoSuchJobError    the FineTuneJob does not exist, or was deleted and created again
├── NameTakenError        an object of that name exists already
├── RefusedError          the request is refused: an invalid object, a quota, an admission policy, a job that has ended
├── JobFailedError        the job failed; holds its failure
├── JobTimeoutError       the job did not reach the expected phase in time
├── CommandError          a command in a helper pod failed
├── PullError             the model, or the training record, can't be fetched
└── PutError              the file or folder can't be copied into the claim
"""

from finetune_api.status import Failure, FineTuneJobStatus


class ClientError(Exception):
    """Base class of all errors. message: one sentence for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotConfiguredError(ClientError):
    """No configuration says which cluster to use."""


class UnreachableError(ClientError):
    """The API server does not answer, or can't at the moment."""


class ForbiddenError(ClientError):
    """The user lacks the right, or the API server rejects the credentials."""


class NotInstalledError(ClientError):
    """The cluster has no CRD for FineTuneJobs."""


class NotFoundError(ClientError):
    """The object does not exist."""


class NoSuchJobError(NotFoundError):
    """The FineTuneJob does not exist, or another one of the same name has replaced it."""


class NameTakenError(ClientError):
    """An object of that name exists already."""


class RefusedError(ClientError):
    """The API server, or the state of the job, does not allow the request."""


class JobFailedError(ClientError):
    """The job ended in the phase Failed. failure: the cause, None if the status has none. status: the last status."""

    def __init__(self, message: str, failure: Failure | None, status: FineTuneJobStatus) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status


class JobTimeoutError(ClientError, TimeoutError):
    """The job did not reach the expected phase within the timeout. The job continues."""


class CommandError(ClientError):
    """A command in a helper pod failed. message: what it wrote to standard error."""


class PullError(ClientError):
    """The output of a job can't be fetched. The data received so far is kept."""


class PutError(ClientError):
    """The file or folder can't be copied into the claim. What has arrived is kept."""
