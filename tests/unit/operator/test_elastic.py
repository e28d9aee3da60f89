"""A lost node without a replacement: the job continues with fewer nodes if its spec allows it, and grows back."""

from typing import Any

import pytest

from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.defaults import OperatorDefaults
from finetune_operator.execute import plan_attempt
from finetune_operator.manifests import build_children
from finetune_operator.observed import CreatedAttempt, write_time
from finetune_operator.policy.attempt import decide
from finetune_operator.policy.elastic import choose_nodes
from finetune_operator.policy.status import attempt_created
from unit.operator.builders import IMAGE, NOW, UID, ago, build_child, build_pod, build_record, build_spec, end, observe, running

ELASTIC = build_spec(distributed={"nodes": 3, "minNodes": 2})
NO_ROOM = ("Unschedulable", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")


def restarted(seconds: float, before: str = "NodeLost", nodes: int = 3, **changes: Any) -> FineTuneJobStatus:
    """Return the status of a job whose second attempt was created ``seconds`` ago and waits for its pods."""
    first = Attempt(number=1, start_time=write_time(ago(900)), completion_time=write_time(ago(seconds)), nodes=3, reason=before)
    second = Attempt(number=2, start_time=write_time(ago(seconds)), nodes=nodes)
    values = {"phase": "Pending", "reason": "PodsPending", "running_since": None, "running_seconds": 600, **changes}
    return running(**{"attempt": 2, "attempts": [first, second], **values})


def pods_of_attempt(placed: int, nodes: int = 3) -> list[Any]:
    waiting = {"started": False, "waiting": NO_ROOM, "node": None}
    return [build_pod(index, 2, **({} if index < placed else waiting)) for index in range(nodes)]


def next_status(status: FineTuneJobStatus, pods: list[Any], spec: Any = ELASTIC) -> FineTuneJobStatus:
    return decide(observe(*pods, jobs=[build_child(2, completions=len(pods))], job=build_record(status, spec)), None, NOW).status


def test_an_attempt_without_nodes_for_all_pods_continues_with_the_scheduled_ones() -> None:
    assert next_status(restarted(60), pods_of_attempt(2)).phase == "Pending"
    status = next_status(restarted(61), pods_of_attempt(2))
    assert (status.phase, status.reason) == ("Restarting", "Unschedulable")
    assert (status.message or "").startswith(
        "continues with 2 of 3 nodes because no more are available: pod news-2-2-x: 0/2 nodes"
    )
    assert status.attempts is not None
    assert (status.bookkeeping.placed_pods, status.attempts[-1].reason) == (2, "Unschedulable")
    assert status.restarts == restarted(61).restarts, "no budget is charged"
    assert choose_nodes(ELASTIC, status) == 2
    after = decide(observe(jobs=[], job=build_record(status, ELASTIC)), None, NOW)
    assert after.create_attempt == 3


@pytest.mark.parametrize(
    ("status", "placed", "spec"),
    [
        pytest.param(restarted(600), 1, ELASTIC, id="fewer than minNodes"),
        pytest.param(restarted(600), 2, build_spec(distributed={"nodes": 3}), id="without minNodes"),
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
def test_an_attempt_waits_for_all_its_nodes(status: FineTuneJobStatus, placed: int, spec: Any) -> None:
    pods = [
        pod if status.attempt == 2 else build_pod(pod.index, started=pod.started, waiting=pod.waiting, node=pod.node)
        for pod in pods_of_attempt(placed)
    ]
    jobs = [build_child(status.attempt or 1, completions=3)]
    found = decide(observe(*pods, jobs=jobs, job=build_record(status, spec)), None, NOW).status
    assert (found.phase, found.reason) == ("Pending", "Unschedulable")


def test_pods_that_still_pull_their_image_are_left_alone() -> None:
    pods = [build_pod(0, 2), build_pod(1, 2), build_pod(2, 2, started=False, waiting=("ContainerCreating", ""))]
    assert next_status(restarted(600), pods).phase == "Pending"


def test_a_smaller_attempt_is_complete_with_the_pods_that_it_has() -> None:
    status = restarted(30, nodes=2)
    pods = [build_pod(0, 2), build_pod(1, 2)]
    assert next_status(status, pods).phase == "Initializing"
    finished = [build_pod(0, 2, terminated=end(0)), build_pod(1, 2, terminated=end(0))]
    assert next_status(status, finished).phase == "Succeeded"


def test_all_children_of_a_smaller_attempt_have_its_size() -> None:
    job = build_record(restarted(61, placed_pods=2), ELASTIC)
    children = {item["kind"]: item for item in build_children(plan_attempt(job, ELASTIC, 3, IMAGE, OperatorDefaults(), False))}
    assert (children["Job"]["spec"]["completions"], children["Job"]["spec"]["parallelism"]) == (2, 2)
    assert '"nodes": 2' in children["ConfigMap"]["data"]["run.json"]
    status = attempt_created(job.status, ELASTIC, CreatedAttempt(UID, 1, 3, NOW, IMAGE, 2))
    assert status.resolved is not None
    assert (status.resolved.nodes, status.resolved.processes) == (2, 2)
    assert [item.nodes for item in status.attempts or ()] == [3, 3, 2]
    assert choose_nodes(ELASTIC, status) == 3, "the attempt after it tries all nodes again"
    assert status.message == "attempt 3: waiting for 2 pods to start"


def test_the_restart_after_a_smaller_attempt_tries_all_nodes_again() -> None:
    attempts = [Attempt(number=3, start_time=write_time(ago(99)), completion_time=write_time(NOW), nodes=2, reason="NodeLost")]
    assert choose_nodes(ELASTIC, running(attempts=attempts)) == 3


@pytest.mark.parametrize(("placed", "nodes"), [(0, 2), (2, 2), (3, 3), (9, 3)])
def test_the_size_of_an_attempt_is_between_min_nodes_and_nodes(placed: int, nodes: int) -> None:
    assert choose_nodes(ELASTIC, running(placed_pods=placed)) == nodes


def test_a_suspended_job_resumes_with_the_nodes_of_its_spec() -> None:
    scaled_down = next_status(restarted(61), pods_of_attempt(2))
    stopped = build_spec(suspend=True, distributed={"nodes": 3, "minNodes": 2})
    suspended = decide(observe(jobs=[], job=build_record(scaled_down, stopped)), None, NOW).status
    assert suspended.phase == "Suspended"
    assert choose_nodes(build_spec(distributed={"nodes": 5, "minNodes": 2}), suspended) == 5
