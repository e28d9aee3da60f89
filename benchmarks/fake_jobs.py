"""Manifests for benchmarks of many jobs: jobs of two nodes that run on fake nodes (kwok), ours and those of Kubeflow Trainer."""

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

from finetune_api.resource import parse_spec
from finetune_operator.manifests import Plan
from finetune_operator.manifests.job import build_job

TAINT = {"key": "kwok.x-k8s.io/node", "operator": "Equal", "value": "fake", "effect": "NoSchedule"}
# How long a fake pod runs: long enough that all of them run at the same time. kwok uses the smaller of the two.
POD_LIFETIME = {
    f"pod-complete.stage.kwok.x-k8s.io/{name}": os.environ.get("POD_LIFE", "240s") for name in ("delay", "jitter-delay")
}
GRACE_SECONDS = 1  # the deletion of a namespace waits for the grace period of its pods
Object = dict[str, Any]


def finetune_job(name: str) -> Object:
    """Return a FineTuneJob of two pods that fit on the fake nodes."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "task": "text-classification",
            "model": {"hub": {"name": "a/b"}},
            "datasets": [{"hub": {"name": "c/d"}}],
            "distributed": {"nodes": 2},
            "output": {"claim": {"claimName": "shared", "path": name}},
            "pod": {
                "tolerations": [TAINT],
                "nodeSelector": {"type": "fake"},
                "resources": {"requests": {"cpu": "10m"}},
                "annotations": POD_LIFETIME,
                "terminationGracePeriodSeconds": GRACE_SECONDS,
            },
        },
    }


def output_claim() -> Object:
    """Return the claim for the output of all FineTuneJobs."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def train_job(name: str) -> Object:
    """Return a TrainJob of the same size."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": "bench-torch"}, "trainer": {"numNodes": 2, "numProcPerNode": 1}},
    }


def training_runtime() -> Object:
    """Return the runtime of all TrainJobs."""
    container = {"name": "node", "image": "none", "resources": {"requests": {"cpu": "10m"}}}
    pod: Object = {"tolerations": [TAINT], "nodeSelector": {"type": "fake"}, "containers": [container]}
    pod["terminationGracePeriodSeconds"] = GRACE_SECONDS
    job = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"metadata": {"annotations": POD_LIFETIME}, "spec": pod}},
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "bench-torch", "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": 1}}, "template": {"spec": {"replicatedJobs": [job]}}},
    }


def finished_children(name: str, uid: str) -> Iterator[tuple[str, Object]]:
    """Yield path and manifest of a finished Job and its two pods, as the operator creates them, and as they end."""
    plan = Plan("default", name, uid, 1, parse_spec(finetune_job(name)["spec"]), nodes=2, image="none", restarts_left=3)
    job = build_job(plan)
    job["metadata"].pop("namespace")
    job["spec"]["managedBy"] = "finetune.dev/benchmark"  # so the Job controller leaves it alone
    start, end = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
    complete = [{"type": kind, "status": "True", "lastTransitionTime": end} for kind in ("SuccessCriteriaMet", "Complete")]
    times = {"startTime": start, "completionTime": end}
    yield "jobs", {**job, "status": {**times, "succeeded": 2, "completedIndexes": "0-1", "conditions": complete}}
    report = json.dumps({"attempt": 1, "phase": "Succeeded", "step": 100, "totalSteps": 100, "message": "x" * 1000})
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": start, "finishedAt": end, "message": report}
    for index in range(2):
        template = copy.deepcopy(job["spec"]["template"])
        template["metadata"]["name"] = f"{name}-1-{index}"
        template["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = str(index)
        template["spec"]["schedulerName"] = "none"
        trainer = {"name": "trainer", "image": "none", "imageID": "none", "ready": False, "restartCount": 0}
        status = {"phase": "Succeeded", "containerStatuses": [{**trainer, "state": {"terminated": ended}}]}
        yield "pods", {"apiVersion": "v1", "kind": "Pod", **template, "status": status}
