"""Names that operator, trainer and chart must agree on. Each is defined once, here."""

from typing import Final

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "FineTuneJob"
PLURAL: Final = "finetunejobs"
SINGULAR: Final = "finetunejob"
SHORT_NAME: Final = "ftj"

FIELD_MANAGER: Final = "finetune-operator"
TRAINER_CONTAINER: Final = "trainer"

# Labels and annotations of every child.
LABEL_JOB: Final = f"{GROUP}/finetunejob"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "finetune-operator"
# The ConfigMap with the CA certificates of the operator defaults, one in each namespace of jobs: prefix of its name, and labels.
CA_BUNDLE_PREFIX: Final = "finetune-ca-"
CA_BUNDLE_LABELS: Final = {LABEL_MANAGED_BY: MANAGED_BY, "app.kubernetes.io/component": "ca-bundle"}
# The uid of the FineTuneJob that a retained output claim belongs to. Such a claim has no owner reference.
ANNOTATION_OWNER_UID: Final = f"{GROUP}/owner-uid"
ANNOTATION_GENERATION: Final = f"{GROUP}/generation"  # on Jobs and output claims: that of the spec that they were made from

# Kueue: the operator copies labels and annotations with this prefix from the FineTuneJob to its Jobs and pods.
KUEUE_PREFIX: Final = "kueue.x-k8s.io/"
LABEL_KUEUE_QUEUE: Final = f"{KUEUE_PREFIX}queue-name"
# The operator in spec.managedBy: of a FineTuneJob, and of the Job that holds the place in a queue, which Kubernetes does not run.
MANAGER: Final = f"{GROUP}/operator"
ANNOTATION_REQUIREMENTS: Final = f"{GROUP}/requirements"  # on that Job: a digest of what it asks for

# Environment variables of a training pod. The operator sets them, the launcher reads them.
ENV_RUN_FILE: Final = "FINETUNE_RUN_FILE"  # path of the JSON file with the wire.RunConfig
ENV_NODE_INDEX: Final = "JOB_COMPLETION_INDEX"  # set by the Job controller in an Indexed Job
ENV_RENDEZVOUS_HOST: Final = "FINETUNE_RENDEZVOUS_HOST"  # DNS name of the pod with index 0
ENV_CACHE_DIR: Final = "FINETUNE_CACHE_DIR"  # where the claim of spec.cache is mounted
ENV_NODE_NAME: Final = "NODE_NAME"  # downward API: the node, named in failures
ENV_POD_IP: Final = "POD_IP"  # downward API: the address on which the pod serves telemetry
ENV_CPU_REQUEST: Final = "FINETUNE_CPU_REQUEST"  # downward API: the CPU that the pod requests, in thousandths
ENV_RESTARTS_LEFT: Final = "FINETUNE_RESTARTS_LEFT"  # number of in-place restarts that are still allowed
ENV_HUB_TOKEN: Final = "HF_TOKEN"  # set only by secretKeyRef
ENV_HUB_ENDPOINT: Final = "HF_ENDPOINT"

# Ports of a training pod.
PORT_TELEMETRY: Final = 9400  # /metrics, /progress, /healthz
PORT_RENDEZVOUS: Final = 29400  # the store of torchrun's rendezvous, on the pod with index 0

# Ports of the operator's pod.
PORT_OPERATOR: Final = 8080  # /metrics, /healthz, /readyz
PORT_OPERATOR_METRICS: Final = 8443  # /metrics with TLS, if the chart's value metrics.secure is true

# Paths in a training pod.
CONFIG_DIR: Final = "/etc/finetune"
RUN_FILE_NAME: Final = "run.json"  # key of the ConfigMap, file in CONFIG_DIR
RENDEZVOUS_KEY_FILE_NAME: Final = "rendezvous-key"  # the same; only for several pods
CA_FILE_NAME: Final = "ca.crt"  # key of the ConfigMap with the CA certificates of the operator defaults, file in CONFIG_DIR
CLAIMS_DIR: Final = "/finetune/claims"  # one folder for each claim that the spec names
OUTPUT_DIR: Final = "/finetune/output"
CACHE_DIR: Final = "/finetune/cache"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LOG_LIMIT_BYTES: Final = 4096  # Kubernetes truncates longer messages

# Exit codes of a training pod's launcher. The termination message says more; the exit code is known even if there is none.
EXIT_SUCCEEDED: Final = 0
EXIT_FAILED: Final = 1  # a retry may help
EXIT_REFUSED: Final = 64  # sysexits EX_USAGE: no retry helps
EXIT_INTERRUPTED: Final = 75  # sysexits EX_TEMPFAIL: stopped on request after a save; the job can resume

# The longest FineTuneJob name for which the names of all children are valid. The name of an Indexed Job has at most 61
# characters, including "-<attempt>" with up to four digits. The host names of its pods append the completion index.
MAX_NAME_LENGTH: Final = 52


def attempt_name(job: str, attempt: int) -> str:
    """Return the name of the Job and the ConfigMap of an attempt."""
    return f"{job}-{attempt}"


def queue_job_name(job: str) -> str:
    """Return the name of the Job that holds the place in Kueue's queue for all attempts."""
    return f"{job}-queue"


def service_name(job: str) -> str:
    """Return the name of the headless Service that gives the training pods their DNS names."""
    return f"{job}-gang"


def output_claim_name(job: str) -> str:
    """Return the name of the claim that ``spec.output.volume`` creates."""
    return f"{job}-output"


def pod_group_name(job: str) -> str:
    """Return the name of the PodGroup, for schedulers that place all pods of an attempt or none."""
    return f"{job}-gang"


def network_policy_name(job: str) -> str:
    """Return the name of the NetworkPolicy of the training pods, for operator defaults that enable one."""
    return f"{job}-gang"


def pod_host_name(job: str, attempt: int, index: int) -> str:
    """Return the host name that the Job controller gives the pod with that completion index."""
    return f"{attempt_name(job, attempt)}-{index}"
