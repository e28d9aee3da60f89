"""Writes the status of a FineTuneJob."""

from finetune_api import names
from finetune_api.status import FineTuneJobStatus
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.observed import JobRecord
from finetune_operator.parsing import read_job


async def apply_status(api: Api, job: JobRecord, status: FineTuneJobStatus) -> JobRecord | None:
    """Write the status of the observed job. Return the updated job, or None if it has changed or is gone."""
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
        return read_job(await api.apply_status(names.KIND, manifest), job)
    except ApiError as error:
        if error.code in (404, 409):
            return None
        raise
