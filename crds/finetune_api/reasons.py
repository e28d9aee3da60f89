"""Why a job failed: one table holds reason → does a retry heal it → what counts it → what to do. docs/reasons.md shows it.

Reasons are part of the API: they are matched by alerts and scripts, so a name never changes its meaning.
"""

import dataclasses
import enum
from typing import Literal


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
    COLLECTIVE_TIMEOUT = "CollectiveTimeout"
    STALLED = "Stalled"
    WORKER_DIED = "WorkerDied"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    POD_LOST = "PodLost"
    INTERRUPTED = "Interrupted"
    PREEMPTED = "Preempted"
    START_TIMEOUT = "StartTimeout"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    CODE_ERROR = "CodeError"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What follows from a reason.

    retry: another attempt can succeed without a change by the user. meaning: what happened, as one sentence.
    hint: what the user can do, as one sentence. symptom: what the peers of a process that failed see; not a cause.
    disruption: pods or machines were taken away, which is no failure: counted against recovery.maxPreemptions.
    external: something outside of the job is away, so that the same again and again is no crash loop.
    """

    retry: bool
    meaning: str
    hint: str
    symptom: bool = False
    disruption: bool = False
    external: bool = False

    @property
    def budget(self) -> Literal["maxRestarts", "maxPreemptions"] | None:
        """The field of spec.recovery that limits how often it may happen; None where once is the end."""
        if not self.retry:
            return None
        return "maxPreemptions" if self.disruption else "maxRestarts"


VERDICTS: dict[Reason, Verdict] = {
    Reason.INVALID_SPEC: Verdict(
        False,
        "The spec can't be understood, or is refused by a rule that only the operator can check.",
        "Correct the field that the message names and apply the file again under a new name.",
    ),
    Reason.CONFIGURATION_ERROR: Verdict(
        False,
        "A field of the spec does not fit the model, the data, the image or another field, as the pods found out.",
        "Correct the field that the message names; a retry would end the same way.",
    ),
    Reason.DATA_ERROR: Verdict(
        False,
        "The data can't be read, lacks a column, or holds values that the task can't train on.",
        "Correct the data, or the field of spec.datasets that the message names.",
    ),
    Reason.MODEL_NOT_FOUND: Verdict(
        False,
        "The model is not where spec.model says, or may not be seen.",
        "Correct spec.model; a private or gated model also needs spec.hub.tokenSecretRef.",
    ),
    Reason.DATASET_NOT_FOUND: Verdict(
        False,
        "A data set is not where spec.datasets says, or may not be seen.",
        "Correct spec.datasets; a private or gated data set also needs spec.hub.tokenSecretRef.",
    ),
    Reason.HUB_AUTHENTICATION: Verdict(
        False,
        "The Hub refused the token, or the token lacks a right.",
        "Put a valid token with the needed rights into the Secret that spec.hub.tokenSecretRef names.",
    ),
    Reason.HUB_UNAVAILABLE: Verdict(
        True,
        "The Hub does not answer, or answers with errors of its own.",
        "Look whether spec.hub.endpoint can be reached from the cluster.",
        external=True,
    ),
    Reason.HUB_PUSH_FAILED: Verdict(
        False,
        "The training is through, and the finished model could not be pushed.",
        "The finished model is kept in the output volume under model/; push it from there.",
    ),
    Reason.SECRET_NOT_FOUND: Verdict(
        False,
        "A Secret that the spec names, or its key, is not there.",
        "Create the Secret, with the key, in the namespace of the FineTuneJob.",
    ),
    Reason.CLAIM_NOT_FOUND: Verdict(
        False,
        "A PersistentVolumeClaim that the spec names is not there.",
        "Create the PersistentVolumeClaim in the namespace of the FineTuneJob.",
    ),
    Reason.OUTPUT_CONFLICT: Verdict(
        False,
        "The output belongs to another job, or holds what another spec has trained.",
        "Choose another name or output path, or remove what the earlier job left if it is not needed.",
    ),
    Reason.IMAGE_PULL_FAILED: Verdict(
        False,
        "A machine can't get the trainer image.",
        "Correct spec.pod.image, or name a Secret in spec.pod.imagePullSecrets.",
    ),
    Reason.POD_REJECTED: Verdict(
        False,
        "The API server or an admission rule refuses the training pods.",
        "Correct what the message names: the cluster refuses the training pods as they are.",
    ),
    Reason.OUT_OF_GPU_MEMORY: Verdict(
        False,
        "A GPU's memory is not enough, not even for one row at a time where the micro-batch may shrink.",
        "Lower spec.training.perDeviceBatchSize (the result stays the same; spec.recovery.onOutOfMemory: ShrinkMicroBatch does "
        "so by itself) or spec.training.maxTokens.",
    ),
    Reason.OUT_OF_MEMORY: Verdict(
        False,
        "A pod used more memory than its limit and was killed.",
        "Raise spec.pod.resources.limits.memory, or lower spec.training.perDeviceBatchSize.",
    ),
    Reason.DISK_FULL: Verdict(
        False,
        "There is no room left where the job writes.",
        "Give the output more room (spec.output.volume.size), or lower spec.checkpoint.keep; where spec.cache.claimName is full, "
        "make room there.",
    ),
    Reason.NON_FINITE_LOSS: Verdict(
        False,
        "The loss is no number any more.",
        "Lower spec.training.learningRate, or set spec.training.precision to fp32.",
    ),
    Reason.COLLECTIVE_FAILED: Verdict(
        True,
        "A process lost the connection to another one, of which no cause is known.",
        "Look in the logs of the other pods for the process that failed first.",
        symptom=True,
    ),
    Reason.COLLECTIVE_TIMEOUT: Verdict(
        True,
        "A process waited in vain for the others to take part in a collective operation.",
        "Look in the logs for the rank that was late; a slow or broken machine or network makes the others wait.",
        symptom=True,
    ),
    Reason.STALLED: Verdict(
        True,
        "No step ended for longer than spec.recovery.stallTimeoutSeconds allows.",
        "Read the stacks of all threads in the pods' logs; raise spec.recovery.stallTimeoutSeconds if it was only slow.",
    ),
    Reason.WORKER_DIED: Verdict(
        True,
        "A process ended without a word, as by a signal.",
        "Read the pod's log; when memory ran out, raise spec.pod.resources.limits.memory.",
    ),
    Reason.EVICTED: Verdict(
        True,
        "The kubelet ended a pod because its machine ran short of memory, disk or processes.",
        "Write requests for what the message names into spec.pod.resources: the pod then gets a machine that has enough of it.",
    ),
    Reason.NODE_LOST: Verdict(
        True,
        "A machine of the gang does not answer, shuts down, or was drained.",
        "Nothing to do: the job goes on elsewhere from its last checkpoint.",
        disruption=True,
    ),
    Reason.POD_LOST: Verdict(
        True,
        "A pod of the gang, or its Job, was deleted or disappeared, or its machine refused it.",
        "Nothing to do: the job goes on from its last checkpoint.",
        disruption=True,
    ),
    Reason.INTERRUPTED: Verdict(
        True,
        "A pod was asked to stop, and nobody said why.",
        "Nothing to do: the job saved a checkpoint and goes on from it.",
        disruption=True,
    ),
    Reason.PREEMPTED: Verdict(
        True,
        "A pod had to give way to one of a higher priority.",
        "Nothing to do: the job goes on when there is room; spec.pod.priorityClassName decides who gives way.",
        disruption=True,
    ),
    Reason.START_TIMEOUT: Verdict(
        False,
        "The pods of an attempt did not all start within spec.recovery.startTimeoutSeconds.",
        "Mend what the message names, or raise spec.recovery.startTimeoutSeconds; 0 waits without end.",
    ),
    Reason.DEADLINE_EXCEEDED: Verdict(
        False,
        "The pods ran for longer than spec.activeDeadlineSeconds, over all attempts.",
        "Raise spec.activeDeadlineSeconds in a new job on the same output: it goes on from the last checkpoint.",
    ),
    Reason.CODE_ERROR: Verdict(
        True,
        "The training code raised an error that has no name of its own.",
        "Read the traceback in the pod's log; report it if it is ours.",
    ),
}


class FineTuneError(Exception):
    """An end that has a name. Everything that is the user's to mend is raised as this, with one clear sentence.

    reason: the key into ``VERDICTS``. message: what is wrong, where, and what to write instead; never holds a token.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
