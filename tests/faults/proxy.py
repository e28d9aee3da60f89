"""A reverse proxy between an operator and the real API server, which injects faults and records every call.

It runs in a thread of its own. Credentials are the operator's: its token passes through, the proxy has none.
"""

import asyncio
import contextlib
import io
import json
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from faults.calls import Call, Record, read_call
from faults.rules import Answer, Rule

# Headers of one connection, not of the message.
_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "accept-encoding"}
_KEPT = ("list", "create", "patch")
EventFilter = Callable[[str, dict[str, Any]], bool]


class Proxy:
    """server: https address of the API server. context: that trusts its CA."""

    def __init__(self, server: str, context: ssl.SSLContext) -> None:
        self._server, self._context = server, context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._site: web.TCPSite | None = None
        self._open: list[tuple[Call, web.Request]] = []
        self.port = 0
        self.records: list[Record] = []
        self.rules: list[Rule] = []
        self.swallowed: list[tuple[str, str, str]] = []  # kind, type, name
        self._filters: list[EventFilter] = []

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._thread.start()
        self._do(self._start())

    def stop(self) -> None:
        """End all connections, and the thread."""
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def add(self, rule: Rule) -> Rule:
        """Let a fault strike from now on; the first rule that matches a call counts."""
        self.rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """End a fault."""
        self.rules.remove(rule)

    def cut(self, chosen: Callable[[Call], bool] = lambda _: True) -> None:
        """Cut the connections of the open calls that are chosen: watches, mostly."""

        async def cut() -> None:
            for call, request in list(self._open):
                if request.transport is not None and chosen(call):
                    request.transport.abort()

        self._do(cut())

    @contextlib.contextmanager
    def swallow(self, chosen: EventFilter) -> Iterator[None]:
        """Keep back the watch events for which ``chosen(resource, event)`` holds."""
        self._filters.append(chosen)
        try:
            yield
        finally:
            self._filters.remove(chosen)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The API server is gone: every connection is cut, new ones are refused."""
        site, self._site = self._site, None
        assert site is not None

        async def close() -> None:
            await site.stop()
            self._abort_all()

        self._do(close())
        try:
            yield
        finally:
            self._do(self._listen())

    def find(self, match: Callable[[Call], bool], since: int = 0) -> list[Record]:
        """The recorded calls that match. since: index of the first record that counts."""
        return [record for record in self.records[since:] if match(record.call)]

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        # One connection per call: a cut one must not take another's answer with it.
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, connect=10)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    def _abort_all(self) -> None:
        assert self._runner.server is not None
        for connection in self._runner.server.connections:  # idle ones too
            if connection.transport is not None:
                connection.transport.abort()

    async def _stop(self) -> None:
        self._abort_all()
        await self._runner.cleanup()
        await self._session.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        record = Record(read_call(request.method, request.path, request.query, body))
        self.records.append(record)
        entry = (record.call, request)
        self._open.append(entry)
        try:
            rule = next((rule for rule in list(self.rules) if rule.strikes(record.call)), None)
            return await self._apply(rule, request, record, body)
        except (aiohttp.ClientError, ConnectionError):
            _abort(request)  # the API server, or the operator, has gone
            return web.Response(status=502)
        finally:
            self._open[:] = [other for other in self._open if other is not entry]

    async def _apply(self, rule: Rule | None, request: web.Request, record: Record, body: bytes) -> web.StreamResponse:
        if rule is None:
            return await self._forward(request, record, body)
        await asyncio.sleep(rule.delay_seconds)
        if rule.drop == "after":
            await self._ask(request, record, body)
        if rule.effect is not None:
            rule.effect()
        if rule.drop is not None:
            _abort(request)
            return web.Response(status=502)
        if rule.answer is not None:
            answer = rule.answer if isinstance(rule.answer, Answer) else rule.answer(record.call)
            record.told = answer.code
            headers = {"Retry-After": str(answer.retry_after)} if answer.retry_after is not None else {}
            return web.Response(status=answer.code, body=answer.content(), content_type="application/json", headers=headers)
        return await self._forward(request, record, body)

    async def _ask(self, request: web.Request, record: Record, body: bytes) -> tuple[bytes, dict[str, str]]:
        async with self._session.request(
            request.method, self._url(request), data=io.BytesIO(body) if body else None, headers=_headers(request)
        ) as answer:
            content = await answer.read()
            record.status, record.size = answer.status, len(content)
            if record.call.verb in _KEPT and "json" in answer.content_type:
                record.answer = json.loads(content)
            return content, {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}

    async def _forward(self, request: web.Request, record: Record, body: bytes) -> web.StreamResponse:
        if record.call.verb == "watch":
            return await self._watch(request, record)
        content, headers = await self._ask(request, record, body)
        record.told = record.status
        return web.Response(status=record.status, body=content, headers=headers)

    async def _watch(self, request: web.Request, record: Record) -> web.StreamResponse:
        async with self._session.get(self._url(request), headers=_headers(request)) as answer:
            record.status = record.told = answer.status
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]})
            await response.prepare(request)
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if not self._swallows(record.call, line):
                        await response.write(line + b"\n")
                        record.size += len(line)
            await response.write_eof()
            return response

    def _swallows(self, call: Call, line: bytes) -> bool:
        if not self._filters:
            return False
        event = json.loads(line)
        if not any(chosen(call.resource, event) for chosen in list(self._filters)):
            return False
        self.swallowed.append((call.resource, event["type"], event["object"].get("metadata", {}).get("name", "")))
        return True

    def _url(self, request: web.Request) -> URL:
        return URL(f"{self._server}{request.raw_path}", encoded=True)


def _headers(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() not in _HOP}


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
