"""A machine that was lost and finds no substitute: the job goes on with fewer nodes, where it may, and grows back."""

from typing import Any

import pytest

from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.manifests import build_children
from finetune_operator.observed import Whole, write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.elastic import choose_nodes
from finetune_operator.policy.status import started
from finetune_operator.reconcile import plan_attempt
from finetune_operator.site import Site
from unit.operator.builders import IMAGE, NOW, ago, build_child, build_pod, build_record, build_spec, end, observe, running

ELASTIC = build_spec(distributed={"nodes": 3, "minNodes": 2})
NO_ROOM = ("Unschedulable", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")


def restarted(seconds: float, before: str = "NodeLost", nodes: int = 3, **changes: Any) -> FineTuneJobStatus:
    """A job whose second attempt was created so long ago, and waits for its pods."""
    first = Attempt(number=1, start_time=write_time(ago(900)), completion_time=write_time(ago(seconds)), nodes=3, reason=before)
    second = Attempt(number=2, start_time=write_time(ago(seconds)), nodes=nodes)
    values = {"phase": "Pending", "reason": "PodsPending", "running_since": None, "running_seconds": 600, **changes}
    return running(**{"attempt": 2, "attempts": [first, second], **values})


def gang(placed: int, nodes: int = 3) -> list[Any]:
    waiting = {"started": False, "waiting": NO_ROOM, "node": None}
    return [build_pod(index, 2, **({} if index < placed else waiting)) for index in range(nodes)]


def look(status: FineTuneJobStatus, pods: list[Any], spec: Any = ELASTIC) -> FineTuneJobStatus:
    return decide(observe(*pods, jobs=[build_child(2, size=len(pods))], job=build_record(status, spec)), None, NOW).status


def test_an_attempt_that_finds_no_machine_for_all_goes_on_with_those_that_have_one() -> None:
    assert look(restarted(60), gang(2)).phase == "Pending"
    status = look(restarted(61), gang(2))
    assert (status.phase, status.reason) == ("Restarting", "Unschedulable")
    assert (status.message or "").startswith(
        "goes on with 2 of 3 nodes, as there is no machine for more: pod news-2-2-x: 0/2 nodes"
    )
    assert status.attempts is not None
    assert (status.attempts[-1].placed, status.attempts[-1].reason) == (2, "Unschedulable")
    assert status.restarts == restarted(61).restarts, "it counts as nothing"
    assert choose_nodes(ELASTIC, status) == 2
    after = decide(observe(jobs=[], job=build_record(status, ELASTIC)), None, NOW)
    assert after.create_attempt == 3


@pytest.mark.parametrize(
    ("status", "placed", "spec"),
    [
        pytest.param(restarted(600), 1, ELASTIC, id="fewer than are allowed"),
        pytest.param(restarted(600), 2, build_spec(distributed={"nodes": 3}), id="not asked for"),
        pytest.param(restarted(600, running_seconds=None), 2, ELASTIC, id="it never ran"),
        pytest.param(restarted(600, before="Suspended"), 2, ELASTIC, id="it was suspended"),
        pytest.param(
            running(phase="Pending", running_since=None, attempts=[Attempt(number=1, start_time=write_time(ago(600)), nodes=3)]),
            2,
            ELASTIC,
            id="its first attempt",
        ),
    ],
)
def test_an_attempt_waits_for_all_its_machines(status: FineTuneJobStatus, placed: int, spec: Any) -> None:
    pods = [
        pod if status.attempt == 2 else build_pod(pod.index, started=pod.started, waiting=pod.waiting, node=pod.node)
        for pod in gang(placed)
    ]
    jobs = [build_child(status.attempt or 1, size=3)]
    found = decide(observe(*pods, jobs=jobs, job=build_record(status, spec)), None, NOW).status
    assert (found.phase, found.reason) == ("Pending", "Unschedulable")


def test_a_gang_that_still_pulls_its_image_is_left_alone() -> None:
    pods = [build_pod(0, 2), build_pod(1, 2), build_pod(2, 2, started=False, waiting=("ContainerCreating", ""))]
    assert look(restarted(600), pods).phase == "Pending"


def test_a_smaller_gang_is_whole_with_the_pods_that_it_has() -> None:
    status = restarted(30, nodes=2)
    pods = [build_pod(0, 2), build_pod(1, 2)]
    assert look(status, pods).phase == "Initializing"
    through = [build_pod(0, 2, finished=end(0)), build_pod(1, 2, finished=end(0))]
    assert look(status, through).phase == "Succeeded"


def test_a_smaller_gang_is_created_as_such_in_all_its_parts() -> None:
    ended = restarted(61).attempts or ()
    attempts = [*ended[:-1], ended[-1].model_copy(update={"placed": 2, "reason": "Unschedulable"})]
    job = build_record(restarted(61, attempts=attempts), ELASTIC)
    children = {item["kind"]: item for item in build_children(plan_attempt(job, ELASTIC, 3, IMAGE, Site(), False))}
    assert (children["Job"]["spec"]["completions"], children["Job"]["spec"]["parallelism"]) == (2, 2)
    assert '"nodes": 2' in children["ConfigMap"]["data"]["run.json"]
    status = started(job.status, ELASTIC, Whole(3, NOW, IMAGE, 2))
    assert status.resolved is not None
    assert (status.resolved.nodes, status.resolved.processes) == (2, 2)
    assert [item.nodes for item in status.attempts or ()] == [3, 3, 2]
    assert status.message == "attempt 3: waiting for 2 pods to start"


def test_the_restart_after_a_smaller_gang_tries_all_nodes_again() -> None:
    attempts = [Attempt(number=3, start_time=write_time(ago(99)), completion_time=write_time(NOW), nodes=2, reason="NodeLost")]
    assert choose_nodes(ELASTIC, running(attempts=attempts)) == 3


@pytest.mark.parametrize(("placed", "nodes"), [(0, 2), (2, 2), (3, 3), (9, 3)])
def test_no_gang_is_smaller_than_allowed_or_larger_than_asked_for(placed: int, nodes: int) -> None:
    attempt = Attempt(number=2, start_time=write_time(ago(99)), nodes=3, placed=placed)
    assert choose_nodes(ELASTIC, running(attempts=[attempt])) == nodes
