"""The reasons of failures. ``REASONS`` says for each whether a retry can help, which limit it counts against, and what to do.

docs/reasons.md shows this table. Reasons are part of the API: alerts and scripts match them, so a name never changes its
meaning.
"""

import dataclasses
import enum
from typing import Literal


class Reason(enum.StrEnum):
    """Reasons of ``status.failure``, in CamelCase as in Kubernetes conditions."""

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
    MODEL_TOO_LARGE = "ModelTooLarge"
    GPU_FAILED = "GPUFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    NON_FINITE_LOSS = "NonFiniteLoss"
    COLLECTIVE_FAILED = "CollectiveFailed"
    COLLECTIVE_TIMEOUT = "CollectiveTimeout"
    RENDEZVOUS_TAMPERED = "RendezvousTampered"
    STALLED = "Stalled"
    WORKER_DIED = "WorkerDied"
    INIT_CONTAINER_FAILED = "InitContainerFailed"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    POD_LOST = "PodLost"
    POD_UNRESPONSIVE = "PodUnresponsive"
    INTERRUPTED = "Interrupted"
    PREEMPTED = "Preempted"
    START_TIMEOUT = "StartTimeout"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    CODE_ERROR = "CodeError"


@dataclasses.dataclass(frozen=True)
class ReasonInfo:
    """What a reason means and how the operator handles it.

    retry: another attempt can succeed without a change by the user. meaning: what happened, as one sentence.
    hint: what the user can do, as one sentence. symptom: the peers of a failed process report it; it is not the cause.
    disruption: pods or nodes were taken away. This is not a failure of the job and counts against recovery.maxPreemptions.
    external: something outside of the job is unavailable, so repeated failures are not a crash loop.
    other_node: the node is at fault. The processes are not restarted in the same pod, and later attempts avoid the node.
    retry_after_checkpoint: another attempt can succeed only if this one saved a checkpoint. Otherwise it would end the same way.
    """

    retry: bool
    meaning: str
    hint: str
    symptom: bool = False
    disruption: bool = False
    external: bool = False
    other_node: bool = False
    retry_after_checkpoint: bool = False

    @property
    def budget(self) -> Literal["maxRestarts", "maxPreemptions"] | None:
        """The field of spec.recovery that limits how often it may happen. None if the first occurrence ends the job."""
        if not self.retry and not self.retry_after_checkpoint:
            return None
        return "maxPreemptions" if self.disruption else "maxRestarts"


REASONS: dict[Reason, ReasonInfo] = {
    Reason.INVALID_SPEC: ReasonInfo(
        False,
        "The spec can't be parsed, or it breaks a rule that only the operator can check.",
        "Correct the field that the message names and apply the file again under a new name.",
    ),
    Reason.CONFIGURATION_ERROR: ReasonInfo(
        False,
        "The pods found that a field of the spec does not fit the model, the data, the image or another field.",
        "Correct the field that the message names; a retry would end the same way.",
    ),
    Reason.DATA_ERROR: ReasonInfo(
        False,
        "The data can't be read, lacks a column, or holds values that the task can't train on.",
        "Correct the data, or the field of spec.datasets that the message names.",
    ),
    Reason.MODEL_NOT_FOUND: ReasonInfo(
        False,
        "The model that spec.model names does not exist, or the job has no access to it.",
        "Correct spec.model; a private or gated model also needs spec.hub.tokenSecretRef.",
    ),
    Reason.DATASET_NOT_FOUND: ReasonInfo(
        False,
        "A data set that spec.datasets names does not exist, or the job has no access to it.",
        "Correct spec.datasets; a private or gated data set also needs spec.hub.tokenSecretRef.",
    ),
    Reason.HUB_AUTHENTICATION: ReasonInfo(
        False,
        "The Hub refused the token, or the token lacks a permission.",
        "Put a valid token with the required permissions into the Secret that spec.hub.tokenSecretRef names.",
    ),
    Reason.HUB_UNAVAILABLE: ReasonInfo(
        True,
        "The Hub does not respond, or it responds with a server error.",
        "Check that the cluster can reach spec.hub.endpoint.",
        external=True,
    ),
    Reason.HUB_PUSH_FAILED: ReasonInfo(
        False,
        "The training has finished, but the push of the model to the Hub failed.",
        "The finished model is kept: push it with `kubectl finetune push NAME`, or on one machine with `finetune push DIR --to "
        "OWNER/NAME`.",
    ),
    Reason.SECRET_NOT_FOUND: ReasonInfo(
        False,
        "A Secret that the spec names, or its key, does not exist.",
        "Create the Secret, with the key, in the namespace of the FineTuneJob.",
    ),
    Reason.CLAIM_NOT_FOUND: ReasonInfo(
        False,
        "A PersistentVolumeClaim that the spec names does not exist.",
        "Create the PersistentVolumeClaim in the namespace of the FineTuneJob.",
    ),
    Reason.OUTPUT_CONFLICT: ReasonInfo(
        False,
        "The output belongs to another job, or holds the training of another spec.",
        "Choose another name or output path, or remove the earlier output if it is not needed.",
    ),
    Reason.IMAGE_PULL_FAILED: ReasonInfo(
        False,
        "A node can't pull the trainer image.",
        "Correct spec.pod.image, or name a Secret in spec.pod.imagePullSecrets.",
    ),
    Reason.POD_REJECTED: ReasonInfo(
        False,
        "The API server or an admission rule rejects the training pods.",
        "Correct what the message names: the cluster rejects the training pods until then.",
    ),
    Reason.OUT_OF_GPU_MEMORY: ReasonInfo(
        False,
        "A GPU ran out of memory; with ShrinkMicroBatch, even one row per forward pass did not fit.",
        "Lower spec.training.perDeviceBatchSize (the result stays the same, and spec.recovery.onOutOfMemory: ShrinkMicroBatch "
        "does it automatically) or spec.training.maxTokens.",
    ),
    Reason.MODEL_TOO_LARGE: ReasonInfo(
        False,
        "A GPU's memory is not enough for the model itself, before the first forward pass.",
        "Use GPUs with more memory, a smaller model, or spec.model.lora with spec.model.quantization; `finetune plan` shows how "
        "much memory the job needs.",
    ),
    Reason.GPU_FAILED: ReasonInfo(
        True,
        "A GPU failed, or its driver did, and the next attempts prefer other nodes.",
        "Look for Xid errors in the kernel's log of the node, and reset or replace its GPU; an illegal memory access on several "
        "nodes is a fault of the code.",
        other_node=True,
    ),
    Reason.OUT_OF_MEMORY: ReasonInfo(
        False,
        "A pod used more memory than its limit, or filled /dev/shm, which is part of its memory.",
        "Raise spec.pod.resources.limits.memory in a new job on the same output, or lower spec.training.perDeviceBatchSize (on "
        "the CPU) or dataloader_num_workers in spec.training.arguments.",
        retry_after_checkpoint=True,
    ),
    Reason.DISK_FULL: ReasonInfo(
        False,
        "A volume that the job writes to, or the ephemeral storage that its pod may use, is full.",
        "Give the output more space (spec.output.volume.size), or lower spec.checkpoint.keep; if spec.cache.claimName is full, "
        "free space there.",
    ),
    Reason.NON_FINITE_LOSS: ReasonInfo(
        False,
        "The loss became NaN or infinite.",
        "Lower spec.training.learningRate, or set spec.training.precision to fp32.",
    ),
    Reason.COLLECTIVE_FAILED: ReasonInfo(
        True,
        "A process lost the connection to another one, and no pod reports a cause.",
        "Find the process that failed first in the logs of the other pods: `kubectl finetune logs NAME --attempt N --rank R`.",
        symptom=True,
    ),
    Reason.COLLECTIVE_TIMEOUT: ReasonInfo(
        True,
        "A collective operation timed out because a process did not take part in it.",
        "Find the late rank in the logs; a slow or broken node or network makes the others wait.",
        symptom=True,
    ),
    Reason.RENDEZVOUS_TAMPERED: ReasonInfo(
        True,
        "Something that is not part of the job sent data to its processes, which refused it.",
        "Ask the administrator of the cluster whether its network plugin enforces NetworkPolicies: `helm test` says so.",
        disruption=True,
    ),
    Reason.STALLED: ReasonInfo(
        True,
        "No step ended for longer than spec.recovery.stallTimeoutSeconds allows.",
        "Read the stacks of all threads in the logs (`kubectl finetune logs NAME --attempt N`); if the training was only slow, "
        "raise spec.recovery.stallTimeoutSeconds.",
    ),
    Reason.WORKER_DIED: ReasonInfo(
        True,
        "A process ended without a report, for example by a signal.",
        "Read the pod's log; if memory ran out, raise spec.pod.resources.limits.memory.",
    ),
    Reason.INIT_CONTAINER_FAILED: ReasonInfo(
        True,
        "An init container of the job failed, so the training did not start.",
        "Read the log of the container that the message names, with kubectl logs and its option -c, and correct the container.",
    ),
    Reason.EVICTED: ReasonInfo(
        True,
        "The kubelet evicted a pod because its node ran short of memory, disk or processes.",
        "Request what the message names in spec.pod.resources: the scheduler then chooses a node that has enough of it.",
    ),
    Reason.NODE_LOST: ReasonInfo(
        True,
        "A node of the attempt is unreachable, is shutting down, or was drained.",
        "Nothing to do: the job resumes on other nodes from its last checkpoint.",
        disruption=True,
    ),
    Reason.POD_LOST: ReasonInfo(
        True,
        "A pod of the attempt, or its Job, was deleted or disappeared, or the kubelet of its node rejected it.",
        "Nothing to do: the job resumes from its last checkpoint.",
        disruption=True,
    ),
    Reason.POD_UNRESPONSIVE: ReasonInfo(
        True,
        "A pod no longer answered its kubelet, for example because its node is overloaded.",
        "Nothing to do: the job resumes from its last checkpoint. If it happens again, look at CPU, memory and disk of the node.",
        disruption=True,
    ),
    Reason.INTERRUPTED: ReasonInfo(
        True,
        "A pod was asked to stop, and the cause is unknown.",
        "Nothing to do: the job saved a checkpoint and resumes from it.",
        disruption=True,
    ),
    Reason.PREEMPTED: ReasonInfo(
        True,
        "A pod was preempted by a pod of a higher priority.",
        "Nothing to do: the job resumes when there is room; spec.pod.priorityClassName decides which pods are preempted.",
        disruption=True,
    ),
    Reason.START_TIMEOUT: ReasonInfo(
        False,
        "The pods of an attempt did not all start within spec.recovery.startTimeoutSeconds, or got no nodes within "
        "spec.recovery.scheduleTimeoutSeconds.",
        "Fix what the message names, or raise the limit that it names; 0 waits without a limit.",
    ),
    Reason.DEADLINE_EXCEEDED: ReasonInfo(
        False,
        "The pods ran for longer than spec.activeDeadlineSeconds, over all attempts.",
        "Raise spec.activeDeadlineSeconds in a new job on the same output: it resumes from the last checkpoint.",
    ),
    Reason.CODE_ERROR: ReasonInfo(
        True,
        "The training code raised an error that has no other reason.",
        "Read the traceback in the pod's log; report it if it is a bug of the trainer.",
    ),
}


# The hint if the memory of a node ran out, and not the memory that a pod may use.
NODE_MEMORY_HINT = (
    "Request what the pod needs in spec.pod.resources.requests.memory: the scheduler then chooses a node that has enough of it."
)


class FineTuneError(Exception):
    """A failure with a reason. Every error that the user can fix is raised as this, with one clear sentence.

    reason: the key in ``REASONS``. message: what is wrong, where, and what to write instead. It never contains a token.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
