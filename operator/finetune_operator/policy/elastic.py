"""How many pods an attempt has: all of them, or as many as find a machine where spec.distributed.minNodes allows that."""

import datetime
from collections.abc import Sequence

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import PodState
from finetune_operator.policy.status import closed, in_phase
from finetune_operator.policy.waiting import BY_QUOTA, UNSCHEDULABLE

# So long a substitute for a machine that was lost is waited for: an autoscaler that has one at hand is quicker.
PATIENCE = datetime.timedelta(seconds=60)
# After these nothing was lost: the job stopped on purpose, and waits until there is room for it again.
_NOTHING_LOST = frozenset({"Suspended"}) | BY_QUOTA


def choose_nodes(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Pods of the next attempt: what the one before found room for if it was given up for that, else what the spec asks for."""
    wanted = spec.distributed.nodes
    placed = status.attempts[-1].placed if status.attempts else None
    return wanted if placed is None else max(spec.distributed.min_nodes or wanted, min(placed, wanted))


def nodes_of_attempt(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Pods of the present attempt."""
    return status.attempts[-1].nodes if status.attempts else spec.distributed.nodes


def shrunk(
    spec: FineTuneJobSpec,
    status: FineTuneJobStatus,
    pods: Sequence[PodState],
    waited: datetime.timedelta,
    now: datetime.datetime,
) -> FineTuneJobStatus | None:
    """The status of an attempt that is given up for a smaller one, as a lost machine found no substitute; None if it is not."""
    least, attempts = spec.distributed.min_nodes, status.attempts or ()
    if least is None or len(attempts) < 2 or status.running_seconds is None or attempts[-2].reason in _NOTHING_LOST:
        return None
    placed, wanted = sum(pod.node is not None for pod in pods), attempts[-1].nodes
    if status.reason != UNSCHEDULABLE or waited <= PATIENCE or not least <= placed < wanted:
        return None
    message = f"goes on with {placed} of {spec.distributed.nodes} nodes, as there is no machine for more: {status.message}"
    ended = closed(status, UNSCHEDULABLE, now)
    assert ended.attempts
    last = ended.attempts[-1].model_copy(update={"placed": placed})
    ended = ended.model_copy(update={"attempts": [*ended.attempts[:-1], last]})
    return in_phase(ended, "Restarting", UNSCHEDULABLE, message[:1000])
