"""A job of which nothing is heard any more, and who may conclude what from that."""

import dataclasses
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus, Progress, Resolved
from finetune_api.wire import Report
from finetune_operator.observed import write_time
from finetune_operator.policy.attempt import decide
from unit.operator.builders import (
    KEY,
    NOW,
    ago,
    build_pod,
    build_record,
    build_spec,
    child_manifest,
    end,
    job_manifest,
    observe,
    pod_manifest,
    running,
)
from unit.operator.world import World


def training(**progress: Any) -> FineTuneJobStatus:
    values = {"step": 40, "total_steps": 100, "last_step_time": write_time(ago(900)), **progress}
    return running(seconds=3600, progress=Progress(**values), resolved=Resolved(global_batch_size=32))


def look(status: FineTuneJobStatus, silent: float, *pods: Any, **recovery: Any) -> FineTuneJobStatus:
    seen = observe(*(pods or (build_pod(0), build_pod(1))), job=build_record(status, build_spec(recovery=recovery)))
    return decide(dataclasses.replace(seen, silent_seconds=silent), None, NOW).status


def test_a_job_that_has_not_answered_for_too_long_is_restarted() -> None:
    assert look(training(), 719).phase == "Running"
    status = look(training(), 720)
    assert (status.phase, status.reason) == ("Restarting", "Stalled")
    assert status.failure is not None
    assert status.failure.node == "node-0"
    assert status.failure.message == (
        f"pod news-1-0-x on node-0 has not answered for 12m00s; the last step that it told of was 40, at {write_time(ago(900))}"
    )
    assert status.restarts is not None
    assert (status.restarts.failures, status.restarts.charged) == (1, 1)


def test_a_slow_step_has_ten_times_as_long_as_it_usually_takes() -> None:
    slow = training(samples_per_second=0.2)  # 160 s for a batch of 32
    assert look(slow, 1719).phase == "Running"
    assert look(slow, 1720).phase == "Restarting"


@pytest.mark.parametrize(
    ("status", "pods", "recovery"),
    [
        pytest.param(training(), (), {"stallTimeoutSeconds": 0}, id="nobody wants to know"),
        pytest.param(training(), (), {"stallTimeoutSeconds": 10**6}, id="not yet"),
        pytest.param(training(last_step_time=None), (), {}, id="it never told of a step"),
        pytest.param(running(phase="Initializing", progress=training().progress), (), {}, id="it does not train"),
        pytest.param(running(phase="Publishing", progress=training().progress), (), {}, id="it is through"),
    ],
)
def test_silence_alone_is_no_stall(status: FineTuneJobStatus, pods: tuple[Any, ...], recovery: dict[str, Any]) -> None:
    assert look(status, 5000, *pods, **recovery).phase == status.phase


def test_a_gang_that_is_about_to_end_is_not_taken_for_silent() -> None:
    assert look(training(), 5000, build_pod(0), build_pod(1, finished=end(0))).phase == "Running"


def talking(world: World) -> None:
    world.watched(job_manifest(status=training()), [child_manifest()], [pod_manifest(0), pod_manifest(1)])


async def test_an_operator_that_has_just_started_gives_the_whole_time() -> None:
    world = World()
    talking(world)
    await world.turn()
    world.poller._watched[KEY] = 50
    world.wait(719)
    await world.turn()
    assert world.status["phase"] == "Running"
    world.wait(1)
    await world.turn()
    assert (world.status["phase"], world.status["reason"]) == ("Restarting", "Stalled")


async def test_a_pod_that_was_hardly_asked_is_not_silent() -> None:
    world = World()
    talking(world)
    await world.turn()
    world.poller._watched[KEY] = 9
    world.wait(5000)
    await world.turn()
    assert world.status["phase"] == "Running"


async def test_a_pod_that_answers_again_begins_anew() -> None:
    world = World()
    talking(world)
    await world.turn()
    world.wait(700)
    world.store.heard[KEY] = dataclasses.replace(
        world.store.heard[KEY], report=Report(attempt=1, phase="Running", step=41, total_steps=100), at=world.seconds
    )
    world.poller._watched[KEY] = 50
    world.wait(700)
    await world.turn()
    assert world.status["phase"] == "Running"


async def test_nothing_follows_from_silence_where_nobody_at_all_answers() -> None:
    world = World()
    talking(world)
    await world.turn()
    other = dataclasses.replace(KEY, name="other")
    world.poller._watched |= {KEY: 500, other: 500}
    world.wait(5000)
    await world.turn()
    assert world.status["phase"] == "Running"
    world.poller._last_answer = world.seconds  # the network is back: the other one has answered
    world.wait(30)
    await world.turn()
    assert world.status["phase"] == "Running", "this one has its whole time again"
    world.wait(25)
    world.poller._last_answer = world.seconds
    world.wait(20)
    await world.turn()
    assert world.status["phase"] == "Running"
