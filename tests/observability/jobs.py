"""The jobs that Prometheus scrapes in the tests."""

import dataclasses
from typing import Any

from cluster.kube import Namespace, Object
from finetune_operator import smoke

WATCHED, STALLED = "watched", "stalled"
# Low, so a test does not wait for ten minutes.
STALLED_SECONDS = 45
SCRAPE_SECONDS = 5
RESOURCES = {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1"}}


@dataclasses.dataclass(frozen=True)
class Watched:
    """A training that Prometheus scraped from ``start`` to ``end``, Unix time. during: a time while it trained."""

    jobs: Namespace
    start: float
    during: float
    end: float


def make_namespace(name: str) -> Namespace:
    namespace = Namespace(name)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    namespace.wait_for("its service account", lambda: namespace.get("serviceaccount", "default"), 30)
    return namespace


def build_job(name: str, claim: str, steps: int, **changes: Any) -> Object:
    """Return a job that trains a model of a few thousand weights, with evaluations and checkpoints. changes: fields of spec."""
    job = smoke.build_job(claim, RESOURCES)
    spec = job["spec"] | changes
    spec["training"] = {"globalBatchSize": 8, "maxTokens": 16, "maxSteps": steps}
    spec["evaluation"] = {"everySteps": max(1, steps // 4)}
    spec["checkpoint"] = {"everySteps": max(1, steps // 4)}
    spec["output"] = {"claim": {"claimName": claim, "path": f"output-{name}"}}
    return {**job, "metadata": {"name": name}, "spec": spec}
