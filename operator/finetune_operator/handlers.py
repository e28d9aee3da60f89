"""kopf, the watch layer: what happens to a FineTuneJob, its Jobs and pods puts the job's key into the queue, nothing more."""

from collections.abc import Callable
from typing import Any

import kopf

from finetune_api import names
from finetune_operator.observed import Key


def build_settings() -> kopf.OperatorSettings:
    """kopf as a reader: it posts nothing, patches nothing, and asks only for what carries our label."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.queueing.worker_limit = None  # a limit would cap what is seen at about limit ÷ 5 s
    settings.queueing.exit_timeout = 1.0
    settings.networking.enforce_retry_after = True
    settings.watching.label_selectors["batch", "jobs"] = names.LABEL_JOB
    settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_JOB
    return settings


def build_registry(enqueue: Callable[[Key], None], saw_event: Callable[[], None]) -> kopf.OperatorRegistry:
    """The handlers. enqueue: the queue's add. saw_event: called whenever a watch tells of a FineTuneJob."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**context: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def saw_job(*, namespace: str | None, name: str, **_: Any) -> None:
        assert namespace is not None
        saw_event()
        enqueue(Key(namespace, name))

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    @kopf.on.event("", "v1", "pods", registry=registry)
    async def saw_child(*, namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        assert namespace is not None
        if job := labels.get(names.LABEL_JOB):
            enqueue(Key(namespace, job))

    return registry
