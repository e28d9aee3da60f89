"""Build FineTuneJobs, pods and events as an API server stores them."""

import copy
from typing import Any

Manifest = dict[str, Any]

SPEC: Manifest = {
    "task": "text-classification",
    "model": {"hub": {"name": "owner/model"}},
    "datasets": [{"hub": {"name": "owner/data"}}],
}
RUNNING: Manifest = {
    "phase": "Running",
    "reason": "Training",
    "message": "attempt 1 trains",
    "attempt": 1,
    "progress": {
        "step": 37,
        "totalSteps": 100,
        "percent": 37,
        "display": "37%",
        "loss": 0.4123,
        "samplesPerSecond": 23.4,
        "remaining": "2m10s",
    },
}
SUCCEEDED: Manifest = {
    "phase": "Succeeded",
    "reason": "Trained",
    "message": "trained 100 steps",
    "attempt": 1,
    "completionTime": "2026-11-21T11:00:00Z",
    "evaluation": {"step": 100, "metrics": {"accuracy": 0.91}},
    "resolved": {"image": "trainer:1"},
}
FAILED: Manifest = {
    "phase": "Failed",
    "reason": "DataError",
    "message": "column text is missing",
    "attempt": 2,
    "completionTime": "2026-11-21T12:00:00Z",
    "failure": {
        "reason": "DataError",
        "message": "column text is missing",
        "hint": "Correct the data, or the field of spec.datasets that the message names.",
        "rank": 1,
        "node": "node-b",
        "exitCode": 64,
    },
    "attempts": [
        {"number": 1, "startTime": "2026-11-21T10:00:00Z", "completionTime": "2026-11-21T10:05:00Z", "nodes": 2, "step": 7,
         "reason": "NodeLost"},
        {"number": 2, "startTime": "2026-11-21T11:00:00Z", "completionTime": "2026-11-21T12:00:00Z", "nodes": 2, "step": 9,
         "reason": "DataError"},
    ],
}  # fmt: skip

SUSPENDED: Manifest = {
    "phase": "Suspended",
    "reason": "Suspended",
    "conditions": [
        {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "suspended", "observedGeneration": 1,
         "lastTransitionTime": "2026-11-21T10:00:00Z"},
    ],
}  # fmt: skip


def job(name: str = "news", status: Manifest | None = None, **spec: Any) -> Manifest:
    manifest: Manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {**copy.deepcopy(SPEC), **spec},
    }
    if status is not None:
        manifest["status"] = copy.deepcopy(status)
    return manifest


def pod(job: str = "news", attempt: int = 1, index: int = 0, state: Manifest | None = None, **spec: Any) -> Manifest:
    state = state or {"running": {}}
    phase = "Running" if "running" in state else "Pending"
    if "terminated" in state:
        phase = "Failed" if state["terminated"]["exitCode"] else "Succeeded"
    return {
        "metadata": {
            "name": f"{job}-{attempt}-{index}-abcde",
            "labels": {"finetune.dev/finetunejob": job, "finetune.dev/attempt": str(attempt)},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {
            "nodeName": "node-a",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 4711, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "trainer", "image": "trainer:1"}],
            **spec,
        },
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]},
    }


def ended(code: int, reason: str = "Error") -> Manifest:
    return {"terminated": {"exitCode": code, "reason": reason}}


def event(name: str, message: str, job: str = "news", at: str = "2026-11-21T10:00:00Z", kind: str = "Normal") -> Manifest:
    return {
        "metadata": {"name": f"{job}.{name}.{at}"},
        "involvedObject": {"name": job, "uid": f"uid-of-{job}"},
        "reason": name,
        "message": message,
        "type": kind,
        "lastTimestamp": at,
    }
