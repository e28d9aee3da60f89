"""Specs that must be accepted, and specs that must be refused, by the models and by the API server alike.

A refused case names the field that the refusal must speak of, and, where the rule is one of ours and not the schema's,
the sentence that both must say.
"""

import copy
import dataclasses
from typing import Any

MINIMAL: dict[str, Any] = {
    "task": "text-classification",
    "model": {"hub": {"name": "google-bert/bert-base-uncased"}},
    "datasets": [{"hub": {"name": "stanfordnlp/imdb"}}],
}
FULL: dict[str, Any] = {
    "task": "text-classification",
    "model": {"claim": {"claimName": "models", "path": "encoders/minilm"}},
    "datasets": [
        {
            "claim": {"claimName": "data", "path": "news/train.csv", "evalPath": "news/test.csv", "format": "csv"},
            "columns": {"text": "body", "textPair": "title", "label": "topic"},
            "maxTrainSamples": 1000,
            "maxEvalSamples": 100,
        },
        {
            "hub": {"name": "owner/data", "config": "en", "revision": "main"},
            "trainSplit": "train",
            "evalFraction": 0.2,
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
    },
    "distributed": {"nodes": 2, "gpusPerNode": 1, "gpuResourceName": "amd.com/gpu", "processesPerNode": 1},
    "checkpoint": {"everySteps": 100, "keep": 3},
    "output": {
        "volume": {"size": "1.5Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"},
        "retention": {"whenDeleted": "Delete"},
    },
    "recovery": {"maxRestarts": 0},
    "hub": {"endpoint": "https://hub.example.com", "tokenSecretRef": {"name": "hub", "key": "token"}},
    "publish": {"repository": "owner/model", "visibility": "Public"},
    "samples": [{"text": "a text", "textPair": "another"}],
    "pod": {
        "image": "example.com/trainer:1",
        "imagePullSecrets": [{"name": "registry"}],
        "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "8Gi"}},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": 120,
    },
}
_LEFT_OUT = object()


@dataclasses.dataclass(frozen=True)
class Case:
    """A spec. field: what the refusal names, None where the spec is accepted. message: the sentence of a rule of ours."""

    name: str
    spec: dict[str, Any]
    field: str | None = None
    message: str | None = None


def changed(path: str, value: Any, base: dict[str, Any] = MINIMAL) -> dict[str, Any]:
    """A copy of base with the field at a path such as ``datasets.0.columns`` set, or left out."""
    spec = copy.deepcopy(base)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target: Any = spec
    for part in parents:
        target = target[part] if isinstance(part, int) else target.setdefault(part, {})
    if value is _LEFT_OUT:
        del target[last]
    else:
        target[last] = value
    return spec


ACCEPTED = [
    Case("minimal", MINIMAL),
    Case("full", FULL),
    Case("integer where a number is asked for", changed("training.epochs", 2)),
    Case("paths with dots inside names", changed("datasets.0", {"claim": {"claimName": "c", "path": ".cache/v1.0/train..csv"}})),
    Case("hub model without an owner", changed("model.hub.name", "gpt2")),
    Case("one pod with any access mode", changed("output.volume", {"accessMode": "ReadWriteOncePod"})),
    Case(
        "several pods and the default access mode",
        {**MINIMAL, "distributed": {"nodes": 3}, "output": {"volume": {"size": "1Gi"}}},
    ),
    Case("micro-batch as large as the batch", changed("training", {"globalBatchSize": 8, "perDeviceBatchSize": 8})),
    Case("micro-batch as large as the default batch", changed("training.perDeviceBatchSize", 32)),
    Case("warm-up of no step", changed("training.warmupSteps", 0)),
    Case("resources of a number", changed("pod.resources", {"limits": {"cpu": 4}})),
    Case("empty output", changed("output", {})),
]

_PATH_CLIMBS = [".", "..", "../x", "a/../b", "/a", "a/", "a//b", "a/..", "./a"]

REFUSED = [
    Case("unknown field at the top", changed("epochs", 3), "spec.epochs"),
    Case("unknown field inside", changed("training.learning_rate", 0.1), "spec.training.learning_rate"),
    Case("unknown field in a list", changed("datasets.0.hub.split", "train"), "spec.datasets[0].hub.split"),
    Case("string for a number", changed("training.learningRate", "2e-5"), "spec.training.learningRate"),
    Case("fraction for an integer", changed("training.maxSteps", 1.5), "spec.training.maxSteps"),
    Case("boolean for an integer", changed("training.globalBatchSize", True), "spec.training.globalBatchSize"),
    Case("number for a string", changed("model.hub.name", 5), "spec.model.hub.name"),
    Case("object for a list", changed("datasets", {"hub": {"name": "a"}}), "spec.datasets"),
    Case("no task", changed("task", _LEFT_OUT), "spec.task"),
    Case("unknown task", changed("task", "text-generation"), "spec.task"),
    Case("no model", changed("model", _LEFT_OUT), "spec.model"),
    Case("no data set", changed("datasets", []), "spec.datasets"),
    Case("model of nothing", changed("model", {}), "spec.model", "write exactly one of hub and claim"),
    Case("model of two", changed("model.claim", {"claimName": "c"}), "spec.model", "write exactly one of hub and claim"),
    Case("data set of nothing", changed("datasets.0", {}), "spec.datasets[0]", "write exactly one of hub and claim"),
    Case(
        "split and fraction",
        changed("datasets.0", {"hub": {"name": "a/b"}, "evalSplit": "test", "evalFraction": 0.1}),
        "spec.datasets[0]",
        "write evalSplit or evalFraction, not both",
    ),
    Case(
        "evaluation path and fraction",
        changed("datasets.0", {"claim": {"claimName": "c", "evalPath": "test.csv"}, "evalFraction": 0.1}),
        "spec.datasets[0]",
        "claim.evalPath is the evaluation data already: leave out evalFraction and evalSplit",
    ),
    Case("fraction of nothing", changed("datasets.0.evalFraction", 0), "spec.datasets[0].evalFraction"),
    Case("fraction of everything", changed("datasets.0.evalFraction", 1), "spec.datasets[0].evalFraction"),
    Case("learning rate of nothing", changed("training.learningRate", 0), "spec.training.learningRate"),
    Case("warm-up all the time", changed("training.warmupRatio", 1), "spec.training.warmupRatio"),
    Case("seed too large", changed("training.seed", 4_294_967_296), "spec.training.seed"),
    Case("seed below nothing", changed("training.seed", -1), "spec.training.seed"),
    Case(
        "epochs and steps",
        changed("training", {"epochs": 1, "maxSteps": 5}),
        "spec.training",
        "write epochs or maxSteps, not both",
    ),
    Case(
        "two warm-ups",
        changed("training", {"warmupSteps": 1, "warmupRatio": 0.1}),
        "spec.training",
        "write warmupSteps or warmupRatio, not both",
    ),
    Case(
        "micro-batch larger than the batch",
        changed("training", {"globalBatchSize": 8, "perDeviceBatchSize": 9}),
        "spec.training",
        "perDeviceBatchSize must not be larger than globalBatchSize",
    ),
    Case(
        "micro-batch larger than the default batch",
        changed("training.perDeviceBatchSize", 33),
        "spec.training",
        "perDeviceBatchSize must not be larger than globalBatchSize",
    ),
    Case(
        "output of two",
        changed("output", {"claim": {"claimName": "c"}, "volume": {}}),
        "spec.output",
        "write claim or volume, not both",
    ),
    Case(
        "retention of a claim of the user's",
        changed("output", {"claim": {"claimName": "c"}, "retention": {"whenDeleted": "Delete"}}),
        "spec.output",
        "retention is about output.volume: a claim of your own always stays",
    ),
    Case(
        "several pods on a volume for one",
        {**MINIMAL, "distributed": {"nodes": 2}, "output": {"volume": {"accessMode": "ReadWriteOnce"}}},
        "spec",
        "with distributed.nodes > 1 all pods write to the output volume: output.volume.accessMode must be ReadWriteMany",
    ),
    Case("size that is none", changed("output.volume", {"size": "large"}), "spec.output.volume.size"),
    Case("no node", changed("distributed.nodes", 0), "spec.distributed.nodes"),
    Case("endpoint without a scheme", changed("hub.endpoint", "hub.example.com"), "spec.hub.endpoint"),
    Case("token in the file", changed("hub.token", "hf_x"), "spec.hub.token"),
    Case(
        "secret of another namespace",
        changed("hub.tokenSecretRef", {"name": "a", "namespace": "b"}),
        "spec.hub.tokenSecretRef.namespace",
    ),
    Case("repository without an owner", changed("publish", {"repository": "model"}), "spec.publish.repository"),
    Case("sample without a text", changed("samples", [{"textPair": "a"}]), "spec.samples[0].text"),
    *(
        Case(f"path {path}", changed("model", {"claim": {"claimName": "c", "path": path}}), "spec.model.claim.path")
        for path in _PATH_CLIMBS
    ),
]
