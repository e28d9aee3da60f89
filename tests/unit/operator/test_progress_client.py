"""The operator does not trust what it reads from pods. A local server simulates pods that misbehave."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from aiohttp import web

from finetune_api.wire import Report
from finetune_operator.cluster.progress import ProgressClient

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GOOD = {"attempt": 1, "phase": "Running", "step": 3, "totalSteps": 10, "loss": 0.5}


async def _elsewhere(_: web.Request) -> web.Response:
    return web.json_response(GOOD)


@pytest_asyncio.fixture
async def pull() -> AsyncIterator[Callable[[Handler], Awaitable[Report | None]]]:
    """Return a function that pulls once from a server with the given handler."""
    runners = []
    client = ProgressClient.open()

    async def pull_from(handler: Handler) -> Report | None:
        app = web.Application()
        app.router.add_get("/progress", handler)
        app.router.add_get("/elsewhere", _elsewhere)
        runner = web.AppRunner(app, shutdown_timeout=0)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return await client.pull("127.0.0.1", runner.addresses[0][1])

    yield pull_from
    await client.close()
    for runner in runners:
        await runner.cleanup()


async def test_a_report_is_parsed(pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(GOOD)

    assert await pull(handler) == Report(attempt=1, phase="Running", step=3, total_steps=10, loss=0.5)


async def test_a_report_in_small_pieces_is_put_together(pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for character in json.dumps(GOOD).encode():
            await response.write(bytes([character]))
        return response

    report = await pull(handler)
    assert report is not None
    assert report.step == 3


async def test_a_redirect_is_not_followed(pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    async def handler(_: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    assert await pull(handler) is None


async def test_a_huge_body_is_cut_off(pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65_536)
            sent += 65_536

    assert await pull(handler) is None
    assert sent < 20_000_000


async def test_a_pod_that_does_not_answer_delays_the_client_by_a_few_seconds_only(
    pull: Callable[[Handler], Awaitable[Report | None]],
) -> None:
    released = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    started = asyncio.get_running_loop().time()
    assert await pull(handler) is None
    assert asyncio.get_running_loop().time() - started < 4
    released.set()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe garbage",
        b"[1, 2]",
        b"null",
        b'{"attempt": 1, "phase": "Running", "loss": NaN}',
        b'{"attempt": 1, "phase": "Running", "loss": 1e999}',
        b'{"attempt": "1", "phase": "Running"}',
        b'{"attempt": 1, "phase": "Ruling"}',
        b"[" * 60_000,
    ],
)
async def test_an_invalid_report_counts_as_no_answer(body: bytes, pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body)

    assert await pull(handler) is None


async def test_an_error_page_counts_as_no_answer(pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(GOOD, status=500)

    assert await pull(handler) is None


async def test_a_closed_port_counts_as_no_answer() -> None:
    client = ProgressClient.open()
    assert await client.pull("127.0.0.1", 1) is None
    assert await client.pull("::1", 1) is None
    await client.close()


async def test_a_compressed_answer_is_not_unpacked(pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    """A few bytes may unpack to gigabytes."""

    async def handler(_: web.Request) -> web.Response:
        packed = gzip.compress(json.dumps(GOOD).encode())
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"}, content_type="application/json")

    assert await pull(handler) is None


async def test_a_field_of_a_later_version_is_ignored(pull: Callable[[Handler], Awaitable[Report | None]]) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(GOOD | {"later": 1})

    report = await pull(handler)
    assert report is not None
    assert report.step == 3
