"""Checks at the start that the cluster's CustomResourceDefinition has the fields of this operator."""

import asyncio
import logging

from finetune_api import names
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.policy.resource_definition import describe_missing_fields, missing_fields

logger = logging.getLogger(__name__)

# The API server publishes the schema of a new definition after some moments. Helm applies both at the same time.
_TRIES, _RETRY_SECONDS = 6, 5.0
_TIMEOUT_SECONDS = 10.0


class OldDefinitionError(Exception):
    """The cluster's definition lacks fields of the status, so the API server would refuse every status of this operator."""


async def check_definition(api: Api, retry_seconds: float = _RETRY_SECONDS) -> None:
    """Log a warning if the definition lacks fields of the spec. Raise OldDefinitionError if it lacks fields of the status.

    Everybody who has a token may read the schema. If it can't be read, there is no check: the lists then say why.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                published = await api.published_schema()
        except (ApiError, TimeoutError) as error:
            logger.info("the schema of %s can't be read, and is not checked: %s", names.KIND, error)
            return
        if published is None:
            return
        spec, status = missing_fields(published)
        if not status:
            if spec:
                logger.warning("%s", describe_missing_fields(spec))
            return
        if tries_left:
            await asyncio.sleep(retry_seconds)
    raise OldDefinitionError(describe_missing_fields([*status, *spec]))
