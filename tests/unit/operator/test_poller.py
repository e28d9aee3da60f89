"""Running pods are asked how far they are: those that answer every few seconds, those that don't ever more seldom."""

import pytest

from finetune_api.wire import Report
from finetune_operator.observed import Key, Observation
from finetune_operator.poller import INTERVAL_SECONDS, Poller
from finetune_operator.store import Heard, Store
from unit.operator.builders import KEY, build_child, build_pod, build_record, running

REPORT = Report(attempt=1, phase="Running", step=3, total_steps=10)


class Pods:
    """Plays the pods: what is said at each address."""

    def __init__(self, **answers: Report | None) -> None:
        self.asked: list[str] = []
        self.answer: Report | None = REPORT

    async def pull(self, address: str) -> Report | None:
        self.asked.append(address)
        return self.answer


class World:
    def __init__(self) -> None:
        self.store, self.pods, self.told, self.seconds = Store(), Pods(), list[Key](), 0.0
        self.poller = Poller(self.store, self.pods, self.told.append, lambda: self.seconds)  # type: ignore[arg-type]

    def watch(self, *keys: Key) -> None:
        for key in keys:
            self.store.put_job(build_record(running(), key=key))
            self.store.put_observation(Observation(self.store.jobs[key], [build_child()], [build_pod(0), build_pod(1)]), at=0)
            self.poller.watch(key)

    async def ask(self, key: Key = KEY) -> float | None:
        return await self.poller._ask(key)


@pytest.fixture
def world() -> World:
    return World()


async def test_the_first_pod_is_asked_and_its_answer_told(world: World) -> None:
    world.watch(KEY)
    assert await world.ask() == INTERVAL_SECONDS
    assert world.pods.asked == ["10.0.0.1"]
    assert world.store.heard[KEY] == Heard("news-1-0-x", REPORT, 0)
    assert world.told == [KEY]


async def test_a_pod_that_does_not_answer_is_asked_ever_more_seldom_until_it_does(world: World) -> None:
    world.watch(KEY)
    world.pods.answer = None
    assert [await world.ask() for _ in range(6)] == [1, 2, 4, 6, 6, 6]
    assert (world.told, KEY in world.store.heard) == ([], False)
    world.pods.answer = REPORT
    assert await world.ask() == INTERVAL_SECONDS
    world.pods.answer = None
    assert await world.ask() == 1


async def test_what_was_heard_last_stays_while_there_is_no_answer(world: World) -> None:
    world.watch(KEY)
    await world.ask()
    world.pods.answer = None
    await world.ask()
    assert world.store.heard[KEY].report == REPORT


@pytest.mark.parametrize(
    "change", [{"deleted_at": build_pod().created}, {"started": False}, {"address": None}, {"job_uid": "another"}]
)
async def test_nobody_is_asked_once_there_is_no_pod_that_runs(world: World, change: dict[str, object]) -> None:
    world.watch(KEY)
    world.store.put_pod(KEY, build_pod(0, version=1, **change))
    assert await world.ask() is None
    assert (world.pods.asked, world.poller._watched) == ([], {})


async def test_a_job_that_is_gone_is_not_remembered_and_may_come_again(world: World) -> None:
    world.watch(KEY)
    world.store.drop_job(KEY)
    assert await world.ask() is None
    assert world.poller._watched == {}
    world.watch(KEY)
    assert await world.ask() == INTERVAL_SECONDS


async def test_a_pod_is_silent_once_it_was_asked_in_vain_for_a_while(world: World) -> None:
    world.watch(KEY)
    world.pods.answer = None
    for _ in range(9):
        await world.ask()
    assert not world.poller.is_silent(KEY)
    await world.ask()
    assert world.poller.is_silent(KEY)
    world.pods.answer = REPORT
    await world.ask()
    assert not world.poller.is_silent(KEY)


async def test_an_answer_has_its_time(world: World) -> None:
    world.watch(KEY)
    world.seconds = 77.0
    await world.ask()
    assert world.store.heard[KEY] == Heard("news-1-0-x", REPORT, 77.0)


async def test_whoever_hears_none_of_several_pods_for_a_minute_is_deaf(world: World) -> None:
    world.watch(KEY)
    world.seconds = 500.0
    assert not world.poller.is_deaf(), "a single pod may well be silent"
    world.watch(Key("team", "other"))
    assert world.poller.is_deaf()
    await world.ask(Key("team", "other"))
    world.seconds = 560.0
    assert not world.poller.is_deaf()
    world.seconds = 561.0
    assert world.poller.is_deaf()


async def test_many_jobs_are_each_asked_more_seldom(world: World) -> None:
    world.watch(*(Key("team", f"job-{number}") for number in range(1000)))
    assert await world.ask(Key("team", "job-0")) == 10


def test_a_job_is_watched_once_however_often_it_is_named(world: World) -> None:
    for _ in range(3):
        world.poller.watch(KEY)
    assert world.poller._queue.depth() == 1
