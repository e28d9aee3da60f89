"""What a job asks of its queue. A change means another place in the queue."""

import hashlib
import json
from collections.abc import Mapping

from finetune_api.spec import FineTuneJobSpec


def requirements_digest(spec: FineTuneJobSpec, labels: Mapping[str, str], annotations: Mapping[str, str]) -> str:
    """Return a digest of nodes and pods, and of Kueue's labels and annotations of the FineTuneJob.

    Without defaults: a field that a later version of the operator adds is no reason to queue again.
    """
    blocks = [block.model_dump(mode="json", by_alias=True, exclude_defaults=True) for block in (spec.distributed, spec.pod)]
    content = [*blocks, dict(labels), dict(annotations)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
