"""Liveness and readiness probes. An unavailable API server does not restart the operator."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Gauge

from finetune_operator.health import MAX_LIST_AGE_SECONDS, MAX_RECONCILE_SECONDS, Health
from finetune_operator.server.app import add_metrics, add_probes


class Harness:
    """Holds the clock and the age of the oldest key in the queue, which a test sets."""

    now = 0.0
    oldest = 0.0


@pytest.fixture
def harness() -> Harness:
    return Harness()


@pytest.fixture
def health(harness: Harness) -> Health:
    return Health(queue_seconds=lambda: harness.oldest, clock=lambda: harness.now)


def test_an_operator_whose_lists_fail_is_live_but_not_ready(health: Health, harness: Harness) -> None:
    for _ in range(10):
        harness.now += MAX_LIST_AGE_SECONDS
        health.list_failed()
        assert health.liveness_failure() is None
    assert not health.is_ready()
    health.list_succeeded()
    assert health.is_ready()


def test_a_stuck_list_loop_fails_the_liveness_probe(health: Health, harness: Harness) -> None:
    health.list_succeeded()
    harness.now = MAX_LIST_AGE_SECONDS + 1
    assert health.liveness_failure() == "the last list of FineTuneJobs was 181 s ago"


def test_a_stuck_queue_fails_the_liveness_probe(health: Health, harness: Harness) -> None:
    harness.oldest = MAX_RECONCILE_SECONDS + 1
    assert health.liveness_failure() == "the queue has made no progress for 181 s"


@pytest_asyncio.fixture
async def client(health: Health) -> AsyncIterator[TestClient]:
    registry = CollectorRegistry()
    depth = Gauge("depth", "Depth.", registry=registry)
    app = web.Application()
    add_probes(app, health)
    add_metrics(app, registry, lambda: depth.set(7))
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_the_server_answers_with_the_state_of_health(client: TestClient, health: Health, harness: Harness) -> None:
    assert (await client.get("/readyz")).status == 503
    health.list_succeeded()
    assert (await client.get("/readyz")).status == 200
    assert (await client.get("/healthz")).status == 200
    harness.oldest = MAX_RECONCILE_SECONDS + 1
    assert (await client.get("/healthz")).status == 503


async def test_metrics_are_refreshed_at_each_scrape(client: TestClient) -> None:
    response = await client.get("/metrics")
    assert "depth 7.0" in await response.text()
    assert response.headers["Content-Type"].startswith("text/plain")
