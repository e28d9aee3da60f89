"""The status and the events of a FineTuneJob. Events come after the status that they tell of."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api import names
from finetune_api.status import FineTuneJobStatus
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import JobRecord, write_time
from finetune_operator.parsing import read_job
from finetune_operator.turn import Turn


async def apply_status(api: Api, job: JobRecord, status: FineTuneJobStatus) -> JobRecord | None:
    """Write the status of what was observed; the job as it is then, None if it has changed or gone since."""
    manifest = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "namespace": job.key.namespace,
            "name": job.key.name,
            "uid": job.uid,
            "resourceVersion": str(job.version),
        },
        "status": status.to_wire(),
    }
    try:
        return read_job(await api.apply_status(names.KIND, manifest))
    except ApiError as error:
        if error.code in (404, 409):
            return None
        raise


async def create_events(api: Api, job: JobRecord, turns: Sequence[Turn], now: datetime) -> None:
    """One event per turn. Its name follows from the turn, so that none is told twice, whatever happens in between."""
    for turn in turns:
        name = f"{job.key.name}.{job.uid[:8]}.{turn.attempt}.{turn.reason.lower()}"
        name += f".{turn.occasion}" if turn.occasion else ""
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": job.key.namespace, "name": name},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "namespace": job.key.namespace,
                "name": job.key.name,
                "uid": job.uid,
            },
            "type": turn.type,
            "reason": turn.reason,
            "message": turn.message[:1000],
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "firstTimestamp": write_time(now),
            "lastTimestamp": write_time(now),
            "count": 1,
        }
        try:
            await api.create("Event", event)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
