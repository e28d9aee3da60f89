"""Chooses the number of pods of an attempt. With spec.distributed.minNodes, it may be less than spec.distributed.nodes."""

import datetime
from collections.abc import Sequence

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import PodState
from finetune_operator.policy.status import attempt_ended, in_phase, with_bookkeeping
from finetune_operator.policy.waiting import QUOTA_REASONS, UNSCHEDULABLE

# The operator waits this long for a replacement of a lost node. An autoscaler with a spare node is faster.
REPLACEMENT_NODE_TIMEOUT = datetime.timedelta(seconds=60)
# If the last attempt ended for one of these reasons, no node was lost, and the job waits until there is room for all pods.
_REASONS_WITHOUT_LOSS = frozenset({"Suspended"}) | QUOTA_REASONS


def choose_nodes(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Return the number of pods of the next attempt.

    After a scale-down, this is the number of pods that got a node. Otherwise it is the number in the spec.
    """
    requested = spec.distributed.nodes
    placed = status.bookkeeping.placed_pods
    return requested if placed is None else max(spec.distributed.min_nodes or requested, min(placed, requested))


def nodes_of_attempt(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Return the number of pods of the present attempt."""
    return status.attempts[-1].nodes if status.attempts else spec.distributed.nodes


def scaled_down(
    spec: FineTuneJobSpec,
    status: FineTuneJobStatus,
    pods: Sequence[PodState],
    waited: datetime.timedelta,
    now: datetime.datetime,
) -> FineTuneJobStatus | None:
    """Return the status that replaces an attempt by a smaller one, because a lost node has no replacement. Else return None."""
    min_nodes, attempts = spec.distributed.min_nodes, status.attempts or ()
    if min_nodes is None or len(attempts) < 2 or status.running_seconds is None or attempts[-2].reason in _REASONS_WITHOUT_LOSS:
        return None
    placed, requested = sum(pod.node is not None for pod in pods), attempts[-1].nodes
    if status.reason != UNSCHEDULABLE or waited <= REPLACEMENT_NODE_TIMEOUT or not min_nodes <= placed < requested:
        return None
    message = f"continues with {placed} of {spec.distributed.nodes} nodes because no more are available: {status.message}"
    ended = with_bookkeeping(attempt_ended(status, UNSCHEDULABLE, now, message), placed_pods=placed)
    return in_phase(ended, "Restarting", UNSCHEDULABLE, message[:1000])
