"""Probes: who is live, who is ready, and that an API server that is away makes nobody restart."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Gauge

from finetune_operator.health import OLDEST_LIST_SECONDS, SLOWEST_TURN_SECONDS, Health
from finetune_operator.server import build_app


class World:
    """A clock and a queue that a test sets."""

    now = 0.0
    slowest = 0.0


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def health(world: World) -> Health:
    return Health(queue_seconds=lambda: world.slowest, clock=lambda: world.now)


def test_lists_that_fail_are_a_sign_of_life_but_not_of_readiness(health: Health, world: World) -> None:
    for _ in range(10):
        world.now += OLDEST_LIST_SECONDS
        health.list_failed()
        assert health.complaint() is None
    assert not health.is_ready()
    health.list_done()
    assert health.is_ready()


def test_a_list_loop_that_stands_still_is_complained_about(health: Health, world: World) -> None:
    health.list_done()
    world.now = OLDEST_LIST_SECONDS + 1
    assert health.complaint() == "FineTuneJobs were listed 181 s ago"


def test_a_queue_that_stands_still_is_complained_about(health: Health, world: World) -> None:
    world.slowest = SLOWEST_TURN_SECONDS + 1
    assert health.complaint() == "the queue stands still for 181 s"


@pytest_asyncio.fixture
async def client(health: Health) -> AsyncIterator[TestClient]:
    registry = CollectorRegistry()
    depth = Gauge("depth", "Depth.", registry=registry)
    async with TestClient(TestServer(build_app(registry, health, lambda: depth.set(7)))) as client:
        yield client


async def test_the_server_answers_as_health_says(client: TestClient, health: Health, world: World) -> None:
    assert (await client.get("/readyz")).status == 503
    health.list_done()
    assert (await client.get("/readyz")).status == 200
    assert (await client.get("/healthz")).status == 200
    world.slowest = SLOWEST_TURN_SECONDS + 1
    assert (await client.get("/healthz")).status == 503


async def test_metrics_are_refreshed_at_each_scrape(client: TestClient) -> None:
    response = await client.get("/metrics")
    assert "depth 7.0" in await response.text()
    assert response.headers["Content-Type"].startswith("text/plain")
