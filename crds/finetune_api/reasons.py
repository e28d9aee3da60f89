"""Why a job failed: one table holds reason → does a retry heal it → what to do.

Reasons are part of the API: they are matched by alerts and scripts, so a name never changes its meaning.
"""

import dataclasses
import enum


class Reason(enum.StrEnum):
    """Reasons of ``status.failure``; CamelCase as in Kubernetes conditions."""

    INVALID_SPEC = "InvalidSpec"
    CONFIGURATION_ERROR = "ConfigurationError"
    DATA_ERROR = "DataError"
    MODEL_NOT_FOUND = "ModelNotFound"
    DATASET_NOT_FOUND = "DatasetNotFound"
    HUB_AUTHENTICATION = "HubAuthentication"
    HUB_UNAVAILABLE = "HubUnavailable"
    HUB_PUSH_FAILED = "HubPushFailed"
    SECRET_NOT_FOUND = "SecretNotFound"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    OUTPUT_CONFLICT = "OutputConflict"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REJECTED = "PodRejected"
    OUT_OF_GPU_MEMORY = "OutOfGPUMemory"
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    NON_FINITE_LOSS = "NonFiniteLoss"
    COLLECTIVE_FAILED = "CollectiveFailed"
    WORKER_DIED = "WorkerDied"
    NODE_LOST = "NodeLost"
    POD_LOST = "PodLost"
    INTERRUPTED = "Interrupted"
    START_TIMEOUT = "StartTimeout"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    CODE_ERROR = "CodeError"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What follows from a reason.

    retry: another attempt can succeed without a change by the user.
    hint: what the user can do, as one sentence. symptom: what the peers of a process that failed see; not a cause.
    """

    retry: bool
    hint: str
    symptom: bool = False


VERDICTS: dict[Reason, Verdict] = {
    Reason.INVALID_SPEC: Verdict(False, "Correct the field that the message names and apply the file again under a new name."),
    Reason.CONFIGURATION_ERROR: Verdict(False, "Correct the field that the message names; a retry would end the same way."),
    Reason.DATA_ERROR: Verdict(False, "Correct the data, or the field of spec.datasets that the message names."),
    Reason.MODEL_NOT_FOUND: Verdict(False, "Correct spec.model; a private or gated model also needs spec.hub.tokenSecretRef."),
    Reason.DATASET_NOT_FOUND: Verdict(
        False, "Correct spec.datasets; a private or gated data set also needs spec.hub.tokenSecretRef."
    ),
    Reason.HUB_AUTHENTICATION: Verdict(
        False, "Put a valid token with the needed rights into the Secret that spec.hub.tokenSecretRef names."
    ),
    Reason.HUB_UNAVAILABLE: Verdict(True, "Look whether spec.hub.endpoint can be reached from the cluster."),
    Reason.HUB_PUSH_FAILED: Verdict(False, "The finished model is kept in the output volume under model/; push it from there."),
    Reason.SECRET_NOT_FOUND: Verdict(False, "Create the Secret, with the key, in the namespace of the FineTuneJob."),
    Reason.CLAIM_NOT_FOUND: Verdict(False, "Create the PersistentVolumeClaim in the namespace of the FineTuneJob."),
    Reason.OUTPUT_CONFLICT: Verdict(
        False, "Choose another name or output path, or remove what the earlier job left if it is not needed."
    ),
    Reason.IMAGE_PULL_FAILED: Verdict(False, "Correct spec.pod.image, or name a Secret in spec.pod.imagePullSecrets."),
    Reason.POD_REJECTED: Verdict(False, "Correct what the message names: the cluster refuses the training pods as they are."),
    Reason.OUT_OF_GPU_MEMORY: Verdict(
        False, "Lower spec.training.perDeviceBatchSize (the result stays the same) or spec.training.maxTokens."
    ),
    Reason.OUT_OF_MEMORY: Verdict(False, "Raise spec.pod.resources.limits.memory, or lower spec.training.perDeviceBatchSize."),
    Reason.DISK_FULL: Verdict(False, "Give the output more room (spec.output.volume.size), or lower spec.checkpoint.keep."),
    Reason.NON_FINITE_LOSS: Verdict(False, "Lower spec.training.learningRate, or set spec.training.precision to fp32."),
    Reason.COLLECTIVE_FAILED: Verdict(
        True, "Look in the logs of the other pods for the process that failed first.", symptom=True
    ),
    Reason.WORKER_DIED: Verdict(True, "Read the pod's log; when memory ran out, raise spec.pod.resources.limits.memory."),
    Reason.NODE_LOST: Verdict(True, "Nothing to do: the job goes on elsewhere from its last checkpoint."),
    Reason.POD_LOST: Verdict(True, "Nothing to do: the job goes on from its last checkpoint."),
    Reason.INTERRUPTED: Verdict(True, "Nothing to do: the job saved a checkpoint and goes on from it."),
    Reason.START_TIMEOUT: Verdict(
        False, "Mend what the message names, or raise spec.recovery.startTimeoutSeconds; 0 waits without end."
    ),
    Reason.DEADLINE_EXCEEDED: Verdict(
        False, "Raise spec.activeDeadlineSeconds in a new job on the same output: it goes on from the last checkpoint."
    ),
    Reason.CODE_ERROR: Verdict(True, "Read the traceback in the pod's log; report it if it is ours."),
}


class FineTuneError(Exception):
    """An end that has a name. Everything that is the user's to mend is raised as this, with one clear sentence.

    reason: the key into ``VERDICTS``. message: what is wrong, where, and what to write instead; never holds a token.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
