"""The class of a case, and the specs from which the cases are made."""

import copy
import dataclasses
from typing import Any

MINIMAL: dict[str, Any] = {
    "task": "text-classification",
    "model": {"hub": {"name": "google-bert/bert-base-uncased"}},
    "datasets": [{"hub": {"name": "stanfordnlp/imdb"}}],
}
_TERM = {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["gpu"]}, {"key": "spot", "operator": "DoesNotExist"}]}
_SELECTOR = {"matchLabels": {"team": "search"}, "matchExpressions": [{"key": "app", "operator": "Exists"}]}
_NEAR = {"topologyKey": "zone", "labelSelector": _SELECTOR, "namespaces": ["a"], "matchLabelKeys": ["team"]}
_FAR = {"topologyKey": "kubernetes.io/hostname", "namespaceSelector": {}, "mismatchLabelKeys": ["team"]}
_REQUIRED, _PREFERRED = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
AFFINITY: dict[str, Any] = {
    "nodeAffinity": {
        _REQUIRED: {
            "nodeSelectorTerms": [{**_TERM, "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]}]
        },
        _PREFERRED: [{"weight": 100, "preference": _TERM}],
    },
    "podAffinity": {_PREFERRED: [{"weight": 1, "podAffinityTerm": _NEAR}]},
    "podAntiAffinity": {_REQUIRED: [_FAR]},
}
FULL: dict[str, Any] = {
    "task": "text-classification",
    "model": {
        "claim": {"claimName": "models", "path": "encoders/minilm"},
        "trustRemoteCode": True,
        "dtype": "bfloat16",
        "quantization": "nf4",
        "lora": {"rank": 8, "alpha": 16, "dropout": 0, "targetModules": ["query", "value"], "modulesToSave": ["embeddings"]},
    },
    "datasets": [
        {
            "claim": {"claimName": "data", "path": "news/train.csv", "evalPath": "news/test.csv", "format": "csv"},
            "columns": {"text": "body", "textPair": "title", "label": "topic"},
            "maxTrainSamples": 1000,
            "maxEvalSamples": 100,
            "weight": 2.5,
        },
        {
            "hub": {"name": "owner/data", "config": "en", "revision": "main"},
            "trainSplit": "train",
            "evalFraction": 0.2,
            "weight": 1,
        },
    ],
    "training": {
        "epochs": 1.5,
        "globalBatchSize": 64,
        "perDeviceBatchSize": 8,
        "maxTokens": 128,
        "learningRate": 2e-5,
        "scheduler": "cosine",
        "warmupSteps": 10,
        "precision": "fp32",
        "seed": 4_294_967_295,
        "loop": "Trainer",
        "activationCheckpointing": True,
        "arguments": {"weight_decay": 0.1, "optim": "adamw_torch", "torch_compile": True},
    },
    "evaluation": {
        "everySteps": 50,
        "best": {"metric": "macroF1", "mode": "Max"},
        "earlyStopping": {"patience": 2, "minDelta": 0.001},
    },
    "classification": {
        "problemType": "SingleLabel",
        "labels": ["good", "bad"],
        "classWeights": {"bad": 5},
        "balanced": True,
    },
    "distributed": {
        "nodes": 2,
        "gpusPerNode": 1,
        "gpuResourceName": "amd.com/gpu",
        "gpuResourceClaim": "gpus",
        "processesPerNode": 1,
    },
    "checkpoint": {"everySteps": 100, "keep": 3},
    "output": {
        "volume": {"size": "1.5Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"},
        "retention": {"whenDeleted": "Delete", "whenFinished": "Delete"},
    },
    "recovery": {"maxRestarts": 0, "startTimeoutSeconds": 0, "scheduleTimeoutSeconds": 86400},
    "cache": {"claimName": "cache"},
    "suspend": True,
    "managedBy": "kueue.x-k8s.io/multikueue",
    "activeDeadlineSeconds": 86400,
    "ttlSecondsAfterFinished": 0,
    "hub": {"endpoint": "https://hub.example.com", "tokenSecretRef": {"name": "hub", "key": "token"}},
    "publish": {"repository": "owner/model", "visibility": "Public", "when": "OnBestCheckpoint", "mergeAdapter": True},
    "samples": [{"text": "a text", "textPair": "another"}],
    "pod": {
        "image": "example.com/trainer:1",
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "8Gi"}},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": AFFINITY,
        "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
        "priorityClassName": "low",
        "schedulerName": "volcano",
        "runtimeClassName": "nvidia",
        "securityContext": {"runAsUser": 2000, "runAsGroup": 2000, "fsGroup": 2000},
        "terminationGracePeriodSeconds": 120,
        "env": [
            {"name": "NCCL_DEBUG", "value": "INFO"},
            {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key"}}},
            {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "modes", "key": "mode"}}},
        ],
        "volumes": [
            {"mountPath": "/mnt/reference", "claim": {"claimName": "reference", "path": "v1"}, "readOnly": False},
            {"mountPath": "/mnt/words/en", "configMap": {"name": "words", "items": [{"key": "en", "path": "words/en"}]}},
            {"name": "downloads", "mountPath": "/mnt/downloads", "emptyDir": {"sizeLimit": "10Gi", "medium": "Memory"}},
            {
                "name": "scratch",
                "ephemeral": {"size": "200Gi", "storageClassName": "fast", "accessMode": "ReadWriteOncePod"},
                "readOnly": True,
            },
            {"mountPath": "/mnt/keys", "secret": {"name": "keys"}},
            {
                "mountPath": "/mnt/identity",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"audience": "vault", "expirationSeconds": 600, "path": "token"}},
                        {"secret": {"name": "keys"}},
                        {"configMap": {"name": "words"}},
                    ]
                },
            },
            {"mountPath": "/mnt/model", "image": {"reference": "example.com/models/minilm:1", "pullPolicy": "Always"}},
            {
                "mountPath": "/mnt/vault",
                "csi": {
                    "driver": "secrets-store.csi.k8s.io",
                    "fsType": "ext4",
                    "volumeAttributes": {"secretProviderClass": "trainer"},
                    "nodePublishSecretRef": {"name": "vault"},
                },
            },
        ],
        "initContainers": [
            {
                "name": "download",
                "image": "example.com/rclone:1",
                "command": ["rclone"],
                "args": ["copy", "bucket:", "/downloads"],
                "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
                "resources": {"requests": {"cpu": 1}},
                "volumeMounts": [{"name": "downloads", "mountPath": "/downloads", "readOnly": False}],
            },
            {"name": "sync", "restartPolicy": "Always", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
        ],
        "serviceAccountName": "trainer",
        "automountServiceAccountToken": True,
        "resourceClaims": [
            {"name": "gpus", "resourceClaimTemplateName": "one-gpu"},
            {"name": "network", "resourceClaimName": "network"},
        ],
        "schedulingGates": [{"name": "example.com/approved"}],
        "labels": {"team": "search", "example.com/cost-centre": "42"},
        "annotations": {"sidecar.istio.io/inject": "false"},
    },
}
LEFT_OUT = object()


@dataclasses.dataclass(frozen=True)
class Case:
    """A spec. field: the field that the error names, None if the spec is accepted. message: the message of the CEL rule."""

    name: str
    spec: dict[str, Any]
    field: str | None = None
    message: str | None = None


def changed(path: str, value: Any, base: dict[str, Any] = MINIMAL) -> dict[str, Any]:
    """Return a copy of ``base`` in which the field at a path such as ``datasets.0.columns`` is set, or left out."""
    spec = copy.deepcopy(base)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = spec
    for part in parents:
        target = target[part] if isinstance(part, int) else target.setdefault(part, {})
    if value is LEFT_OUT:
        del target[last]
    else:
        target[last] = value
    return spec
