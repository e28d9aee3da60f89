"""The poller reads the progress of running pods: every few seconds if they answer, less and less often if they do not."""

import pytest

from finetune_api.wire import Report
from finetune_operator.observed import Key, Observation
from finetune_operator.poller import INTERVAL_SECONDS, Poller
from finetune_operator.store import LastReport, Store
from unit.operator.builders import KEY, build_child, build_pod, build_record, running

REPORT = Report(attempt=1, phase="Running", step=3, total_steps=10)


class FakeProgressClient:
    """Simulates pods: returns the same answer for each address, but none for those that are cut off."""

    def __init__(self) -> None:
        self.polled: list[str] = []
        self.answer: Report | None = REPORT
        self.cut_off: set[str] = set()

    async def pull(self, address: str) -> Report | None:
        self.polled.append(address)
        return None if address in self.cut_off else self.answer


class Harness:
    def __init__(self) -> None:
        self.store, self.client, self.reported = Store(), FakeProgressClient(), list[Key]()
        self.seconds = 0.0
        self.poller = Poller(self.store, self.client, self.reported.append, lambda: self.seconds)  # type: ignore[arg-type]

    def start_polling(self, *keys: Key, nodes: int = 1) -> None:
        for key in keys:
            self.store.put_job(build_record(running(), key=key))
            pods = [build_pod(index) for index in range(nodes)]
            self.store.put_observation(Observation(self.store.jobs[key], [build_child()], pods), read_at=0)
            self.poller.start_polling(key)

    async def poll(self, key: Key = KEY) -> float | None:
        return await self.poller._poll(key)


@pytest.fixture
def harness() -> Harness:
    return Harness()


async def test_the_first_pod_is_polled_and_its_report_is_announced(harness: Harness) -> None:
    harness.start_polling(KEY)
    assert await harness.poll() == INTERVAL_SECONDS
    assert harness.client.polled == ["10.0.0.1"]
    assert harness.store.last_reports[KEY] == LastReport("news-1-0-x", REPORT)
    assert harness.reported == [KEY]


async def test_a_pod_that_does_not_answer_is_polled_less_and_less_often_until_it_does(harness: Harness) -> None:
    harness.start_polling(KEY)
    harness.client.answer = None
    assert [await harness.poll() for _ in range(6)] == [1, 2, 4, 6, 6, 6]
    assert (harness.reported, KEY in harness.store.last_reports) == ([], False)
    harness.client.answer = REPORT
    assert await harness.poll() == INTERVAL_SECONDS
    harness.client.answer = None
    assert await harness.poll() == 1


async def test_the_last_report_is_kept_while_there_is_no_answer(harness: Harness) -> None:
    harness.start_polling(KEY)
    await harness.poll()
    harness.client.answer = None
    await harness.poll()
    assert harness.store.last_reports[KEY].report == REPORT


@pytest.mark.parametrize(
    "change", [{"deletion_requested_at": build_pod().created}, {"started": False}, {"address": None}, {"job_uid": "another"}]
)
async def test_no_pod_is_polled_if_none_runs(harness: Harness, change: dict[str, object]) -> None:
    harness.start_polling(KEY)
    harness.store.put_pod(KEY, build_pod(0, version=1, **change))
    assert await harness.poll() is None
    assert (harness.client.polled, harness.poller._asked) == ([], {})


async def test_a_deleted_job_is_dropped_and_may_be_added_again(harness: Harness) -> None:
    harness.start_polling(KEY)
    harness.store.drop_job(KEY)
    assert await harness.poll() is None
    assert harness.poller._asked == {}
    harness.start_polling(KEY)
    assert await harness.poll() == INTERVAL_SECONDS


async def test_a_pod_is_silent_after_thirty_seconds_without_an_answer(harness: Harness) -> None:
    harness.start_polling(KEY)
    harness.client.answer = None
    for seconds, silent in ((0, False), (10, False), (19, False), (31, True), (40, True)):
        harness.seconds = seconds
        await harness.poll()
        assert harness.poller.silent_pods(KEY) == ({"news-1-0-x"} if silent else set())
    assert harness.reported == [KEY], "the job is reconciled when its pod becomes silent, not at each poll"
    harness.client.answer = REPORT
    await harness.poll()
    assert not harness.poller.silent_pods(KEY)


async def test_the_other_pods_are_asked_in_turn_one_with_each_poll(harness: Harness) -> None:
    harness.start_polling(KEY, nodes=4)
    for _ in range(4):
        assert await harness.poll() == INTERVAL_SECONDS
    assert harness.client.polled[::2] == ["10.0.0.1"] * 4
    assert harness.client.polled[1::2] == ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.2"]


async def test_one_of_64_pods_is_silent_within_a_round_and_thirty_seconds_and_holds_up_nothing(harness: Harness) -> None:
    harness.start_polling(KEY, nodes=64)
    harness.client.cut_off = {"10.0.0.64"}
    polls = 0
    while not harness.poller.silent_pods(KEY):
        assert await harness.poll() == INTERVAL_SECONDS, "the first pod answers"
        polls += 1
        harness.seconds += INTERVAL_SECONDS
    assert harness.poller.silent_pods(KEY) == {"news-1-63-x"}
    assert polls * INTERVAL_SECONDS <= 63 * INTERVAL_SECONDS + 30 + INTERVAL_SECONDS
    harness.client.cut_off = set()
    for _ in range(64):
        await harness.poll()
    assert not harness.poller.silent_pods(KEY)


async def test_a_job_is_reconciled_when_another_pod_becomes_silent_although_the_first_one_is(harness: Harness) -> None:
    harness.start_polling(KEY, nodes=2)
    harness.client.answer = None
    for seconds in (0, 10, 20, 31, 40):
        harness.seconds = seconds
        await harness.poll()
    assert harness.poller.silent_pods(KEY) == {"news-1-0-x", "news-1-1-x"}
    assert harness.reported == [KEY], "both at the same poll"


async def test_a_delay_of_the_operator_makes_no_pod_silent(harness: Harness) -> None:
    harness.start_polling(KEY)
    harness.client.answer = None
    for seconds in (0, 1000, 2000):
        harness.seconds = seconds
        await harness.poll()
    assert not harness.poller.silent_pods(KEY)


async def test_the_pod_of_the_next_attempt_is_not_silent_from_the_start(harness: Harness) -> None:
    harness.start_polling(KEY)
    harness.client.answer = None
    for seconds in (0, 10, 20, 31):
        harness.seconds = seconds
        await harness.poll()
    assert harness.poller.silent_pods(KEY)
    harness.store.drop_pod(KEY, build_pod(0, version=9))
    harness.store.put_pod(KEY, build_pod(0, version=9, name="news-1-0-y"))
    await harness.poll()
    assert not harness.poller.silent_pods(KEY)


async def test_each_of_many_jobs_is_polled_less_often(harness: Harness) -> None:
    harness.start_polling(*(Key("team", f"job-{number}") for number in range(1000)))
    assert await harness.poll(Key("team", "job-0")) == 10


def test_a_job_is_polled_once_however_often_it_is_added(harness: Harness) -> None:
    for _ in range(3):
        harness.poller.start_polling(KEY)
    assert harness.poller._queue.depth() == 1
