"""Observations in one line each, for tests of the policy."""

import datetime
import json
from typing import Any

from finetune_api import names
from finetune_api.resource import parse_spec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import ChildJob, Finished, JobRecord, Key, Observation, Owner, PodState

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
UID = "11111111-aaaa"
IMAGE = "trainer:1"


def ago(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


def build_spec(**changes: Any) -> FineTuneJobSpec:
    spec = {
        "task": "text-classification",
        "model": {"hub": {"name": "a/b"}},
        "datasets": [{"hub": {"name": "c/d"}}],
        "distributed": {"nodes": 2},
        **changes,
    }
    return parse_spec(spec)


def build_record(status: FineTuneJobStatus | None = None, spec: Any = None, written: float | None = 60) -> JobRecord:
    return JobRecord(
        key=Key("team", "news"),
        uid=UID,
        generation=1,
        resource_version="7",
        created=ago(100),
        deleting=False,
        spec=spec if spec is not None else build_spec(),
        status=status or FineTuneJobStatus(),
        status_written_at=ago(written) if written is not None else None,
    )


def build_child(attempt: int = 1, **changes: Any) -> ChildJob:
    values = {
        "name": names.attempt_name("news", attempt),
        "uid": f"job-{attempt}",
        "owner": Owner(names.KIND, "news", UID),
        "attempt": attempt,
        "size": 2,
        "deleting": False,
        "complete": False,
        "ending": False,
        "failed": None,
        **changes,
    }
    return ChildJob(**values)


def build_pod(index: int = 0, attempt: int = 1, **changes: Any) -> PodState:
    values = {
        "name": f"news-{attempt}-{index}-x",
        "owner": Owner("Job", names.attempt_name("news", attempt), f"job-{attempt}"),
        "job_uid": UID,
        "attempt": attempt,
        "index": index,
        "created": ago(60),
        "node": f"node-{index}",
        "address": f"10.0.0.{index + 1}",
        "started": True,
        "waiting": None,
        "finished": None,
        "deleted_at": None,
        "disruption": None,
        **changes,
    }
    return PodState(**values)


def end(exit_code: int | None, seconds_ago: float = 10, reason: str = "Error", **report: Any) -> Finished:
    """The end of a container; with keywords, a Report with them as its termination message."""
    message = json.dumps({"attempt": 1, **report}) if report else ""
    return Finished(exit_code, reason, message, ago(seconds_ago))


def failed_with(reason: str, exit_code: int = 1, seconds_ago: float = 10, **failure: Any) -> Finished:
    """The end of a container that says why."""
    told = {"reason": reason, "message": f"{reason} it was", **failure}
    return end(exit_code, seconds_ago, phase="Failed", failure=told)


def observe(*pods: PodState, status: FineTuneJobStatus | None = None, **changes: Any) -> Observation:
    """A job of two nodes in its first attempt."""
    default = FineTuneJobStatus(phase="Running", reason="Training", attempt=1)
    values = {"job": build_record(status or default), "jobs": [build_child()], "pods": list(pods), **changes}
    return Observation(**values)
