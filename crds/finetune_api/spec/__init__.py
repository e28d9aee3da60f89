"""``FineTuneJob.spec``: what a user asks for. `kubectl explain` shows the descriptions of the fields."""

from finetune_api.spec.common import Claim
from finetune_api.spec.containers import EnvironmentVariable, InitContainer, Resources
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.logging import LogFormat, Logging, Tracker
from finetune_api.spec.output import Cache, Hub, Message, Output, OutputVolume, Publish, Retention, Sample, SecretKey
from finetune_api.spec.pod import Pod, PodSecurity, Toleration
from finetune_api.spec.sources import ClaimDataset, Columns, Dataset, HubDataset, HubModel, LoRA, ModelSource
from finetune_api.spec.tasks import (
    NATIVE_TASKS,
    TASKS,
    Classification,
    DirectPreference,
    MaskedLM,
    ProblemType,
    SupervisedFineTuning,
    Task,
)
from finetune_api.spec.training import (
    DEFAULT_EPOCHS,
    DEFAULT_WARMUP_RATIO,
    SCHEDULERS_BY_METRIC,
    Best,
    Checkpoint,
    Distributed,
    EarlyStopping,
    EvaluationPlan,
    Recovery,
    Training,
)
from finetune_api.spec.volumes import PodVolume

__all__ = [
    "DEFAULT_EPOCHS",
    "DEFAULT_WARMUP_RATIO",
    "NATIVE_TASKS",
    "SCHEDULERS_BY_METRIC",
    "TASKS",
    "Best",
    "Cache",
    "Checkpoint",
    "Claim",
    "ClaimDataset",
    "Classification",
    "Columns",
    "Dataset",
    "DirectPreference",
    "Distributed",
    "EarlyStopping",
    "EnvironmentVariable",
    "EvaluationPlan",
    "FineTuneJobSpec",
    "Hub",
    "HubDataset",
    "HubModel",
    "InitContainer",
    "LoRA",
    "LogFormat",
    "Logging",
    "MaskedLM",
    "Message",
    "ModelSource",
    "Output",
    "OutputVolume",
    "Pod",
    "PodSecurity",
    "PodVolume",
    "ProblemType",
    "Publish",
    "Recovery",
    "Resources",
    "Retention",
    "Sample",
    "SecretKey",
    "SupervisedFineTuning",
    "Task",
    "Toleration",
    "Tracker",
    "Training",
]
