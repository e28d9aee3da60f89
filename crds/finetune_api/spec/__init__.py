"""``FineTuneJob.spec``: what a user asks for. Every field is implemented; descriptions are what `kubectl explain` shows."""

from finetune_api.spec.common import Claim
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.output import Cache, Hub, Output, OutputVolume, Publish, Retention, Sample, SecretKey
from finetune_api.spec.pod import EnvironmentVariable, Pod, PodSecurity, PodVolume, Resources, Toleration
from finetune_api.spec.sources import ClaimDataset, Columns, Dataset, HubDataset, HubModel, ModelSource
from finetune_api.spec.training import DEFAULT_EPOCHS, DEFAULT_WARMUP_RATIO, Checkpoint, Distributed, Recovery, Training

__all__ = [
    "DEFAULT_EPOCHS",
    "DEFAULT_WARMUP_RATIO",
    "Cache",
    "Checkpoint",
    "Claim",
    "ClaimDataset",
    "Columns",
    "Dataset",
    "Distributed",
    "EnvironmentVariable",
    "FineTuneJobSpec",
    "Hub",
    "HubDataset",
    "HubModel",
    "ModelSource",
    "Output",
    "OutputVolume",
    "Pod",
    "PodSecurity",
    "PodVolume",
    "Publish",
    "Recovery",
    "Resources",
    "Retention",
    "Sample",
    "SecretKey",
    "Toleration",
    "Training",
]
