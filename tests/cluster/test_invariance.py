"""The trained model does not depend on how a batch is split over processes and gradient accumulation."""

import json
from typing import Any

import pytest

from cluster.kube import Namespace

pytestmark = pytest.mark.cluster
TOLERANCE = 1e-5  # relative, FP32
ROWS = 61  # divisible neither by 8 nor by 4
EPOCHS = 2
STEPS = 16

# One process × 8, two nodes × 4, one process × 1 with accumulation 8.
SPLITS: dict[str, tuple[int, int]] = {"one-by-eight": (1, 8), "two-by-four": (2, 4), "accumulate-eight": (1, 1)}

COMPARE = """
import json, pathlib
from safetensors.numpy import load_file
import numpy
root = pathlib.Path("/claims/runs")
runs = {path.name: path for path in root.iterdir()}
weights = {name: load_file(path / "model" / "model.safetensors") for name, path in runs.items()}
reference = weights["one-by-eight"]
norm = numpy.sqrt(sum(float((value.astype("f8") ** 2).sum()) for value in reference.values()))
distance = {
    name: float(numpy.sqrt(sum(float(((value.astype("f8") - reference[key]) ** 2).sum()) for key, value in other.items())) / norm)
    for name, other in weights.items()
}
history = {name: [json.loads(line) for line in (path / "history.jsonl").open()] for name, path in runs.items()}
print(json.dumps({"keys": {name: sorted(value) for name, value in weights.items()}, "distance": distance, "history": history}))
"""


def relative(one: float, other: float) -> float:
    return abs(one - other) / abs(other)


def test_the_model_does_not_depend_on_how_the_batch_is_split(jobs: Namespace, make_job: Any, hub: Any, reader: Any) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "runs"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Gi"}}},
    }
    jobs.apply(claim)
    for name, (nodes, micro_batch) in SPLITS.items():
        training = {
            "epochs": EPOCHS, "globalBatchSize": 8, "perDeviceBatchSize": micro_batch, "maxTokens": 64,
            "learningRate": 5e-5, "precision": "fp32", "seed": 7,
        }  # fmt: skip
        job = make_job(
            name,
            model={"hub": {"name": hub.model_without_dropout}},
            datasets=[{**make_job("")["spec"]["datasets"][0], "maxTrainSamples": ROWS, "maxEvalSamples": 30}],
            training=training,
            distributed={"nodes": nodes},
            output={"claim": {"claimName": "runs", "path": name}},
        )
        jobs.apply(job)
    for name in SPLITS:
        jobs.wait_for_phase(name, "Succeeded", timeout=300)
    found = reader("runs").python(COMPARE)

    steps = {name: [line for line in lines if "gradientNorm" in line] for name, lines in found["history"].items()}
    evaluations = {
        name: [line["evaluation"] for line in lines if "evaluation" in line] for name, lines in found["history"].items()
    }
    reference = steps["one-by-eight"]
    assert [line["step"] for line in reference] == list(range(1, STEPS + 1))
    assert len({line["loss"] for line in reference}) == STEPS, "the loss must change at every step"
    worst = {}
    for name in SPLITS:
        assert [line["step"] for line in steps[name]] == [line["step"] for line in reference]
        assert len(evaluations[name]) == len(evaluations["one-by-eight"]) >= 1
        assert found["keys"][name] == found["keys"]["one-by-eight"]
        pairs = list(zip(steps[name], reference, strict=True))
        worst[name] = {
            "loss": max(relative(line["loss"], other["loss"]) for line, other in pairs),
            "gradientNorm": max(relative(line["gradientNorm"], other["gradientNorm"]) for line, other in pairs),
            "evaluation": max(
                relative(one["loss"], other["loss"])
                for one, other in zip(evaluations[name], evaluations["one-by-eight"], strict=True)
            ),
            "weights": found["distance"][name],
        }
    print(json.dumps(worst, indent=1))
    assert {name: values for name, values in worst.items() if max(values.values()) > TOLERANCE} == {}
    for name in SPLITS:
        jobs.kubectl("delete", "finetunejob", name, "--wait=false")
