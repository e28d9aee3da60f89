"""A reverse proxy between an operator and the real API server. It injects faults and records every call.

The proxy runs in its own thread. It has no credentials: it forwards the operator's token.
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
from faults.rules import Response, Rule

# Headers that belong to one connection, not to the message.
_HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "accept-encoding"}
_RECORDED_RESPONSES = ("list", "create", "patch")  # verbs
EventFilter = Callable[[str, dict[str, Any]], bool]


class Proxy:
    """The proxy of one operator. server: https address of the API server. context: trusts the CA of the API server."""

    def __init__(self, server: str, context: ssl.SSLContext) -> None:
        self._server, self._context = server, context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._site: web.TCPSite | None = None
        self._open: list[tuple[Call, web.Request]] = []
        self.port = 0
        self.records: list[Record] = []
        self.rules: list[Rule] = []
        self.dropped_events: list[tuple[str, str, str]] = []  # resource, type, name
        self._filters: list[EventFilter] = []

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._thread.start()
        self._run(self._start())

    def stop(self) -> None:
        """Close all connections and end the thread."""
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def add(self, rule: Rule) -> Rule:
        """Inject a fault from now on. If several rules match a call, the first one applies."""
        self.rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Stop injecting a fault."""
        self.rules.remove(rule)

    def close_connections(self, match: Callable[[Call], bool] = lambda _: True) -> None:
        """Close the operator's connections of the open calls that match. Most open calls are watches."""

        async def close() -> None:
            for call, request in list(self._open):
                if request.transport is not None and match(call):
                    request.transport.abort()

        self._run(close())

    @contextlib.contextmanager
    def drop_events(self, match: EventFilter) -> Iterator[None]:
        """Within the context, do not forward the watch events for which ``match(resource, event)`` holds."""
        self._filters.append(match)
        try:
            yield
        finally:
            self._filters.remove(match)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Simulate an outage of the API server: close every connection and refuse new ones."""
        site, self._site = self._site, None
        assert site is not None

        async def close() -> None:
            await site.stop()
            self._abort_all()

        self._run(close())
        try:
            yield
        finally:
            self._run(self._listen())

    def find(self, match: Callable[[Call], bool], since: int = 0) -> list[Record]:
        """Return the records of the calls that match. since: index of the first record to consider."""
        return [record for record in self.records[since:] if match(record.call)]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        # Without a limit every open call has its own connection. A closed connection then affects no other call.
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
        for connection in self._runner.server.connections:  # includes idle connections
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
            rule = next((rule for rule in list(self.rules) if rule.applies_to(record.call)), None)
            return await self._apply(rule, request, record, body)
        except (aiohttp.ClientError, ConnectionError):
            _abort(request)  # the API server or the operator closed its connection
            return web.Response(status=502)
        finally:
            self._open[:] = [other for other in self._open if other is not entry]

    async def _apply(self, rule: Rule | None, request: web.Request, record: Record, body: bytes) -> web.StreamResponse:
        if rule is None:
            return await self._forward(request, record, body)
        await asyncio.sleep(rule.delay_seconds)
        if rule.drop == "after":
            await self._send(request, record, body)
        if rule.callback is not None:
            rule.callback()
        if rule.drop is not None:
            _abort(request)
            return web.Response(status=502)
        if rule.response is not None:
            response = rule.response if isinstance(rule.response, Response) else rule.response(record.call)
            record.returned = response.code
            headers = {"Retry-After": str(response.retry_after)} if response.retry_after is not None else {}
            return web.Response(status=response.code, body=response.content(), content_type="application/json", headers=headers)
        return await self._forward(request, record, body)

    async def _send(self, request: web.Request, record: Record, body: bytes) -> tuple[bytes, dict[str, str]]:
        """Send a request to the API server, and return the content and the headers of its response."""
        async with self._session.request(
            request.method, self._url(request), data=io.BytesIO(body) if body else None, headers=_headers(request)
        ) as response:
            content = await response.read()
            record.status, record.size = response.status, len(content)
            if record.call.verb in _RECORDED_RESPONSES and "json" in response.content_type:
                record.response = json.loads(content)
            return content, {name: value for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP}

    async def _forward(self, request: web.Request, record: Record, body: bytes) -> web.StreamResponse:
        if record.call.verb == "watch":
            return await self._forward_watch(request, record)
        content, headers = await self._send(request, record, body)
        record.returned = record.status
        return web.Response(status=record.status, body=content, headers=headers)

    async def _forward_watch(self, request: web.Request, record: Record) -> web.StreamResponse:
        async with self._session.get(self._url(request), headers=_headers(request)) as upstream:
            record.status = record.returned = upstream.status
            headers = {"Content-Type": upstream.headers["Content-Type"]}
            response = web.StreamResponse(status=upstream.status, headers=headers)
            await response.prepare(request)
            rest = b""
            async for chunk in upstream.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if not self._drops(record.call, line):
                        await response.write(line + b"\n")
                        record.size += len(line)
            await response.write_eof()
            return response

    def _drops(self, call: Call, line: bytes) -> bool:
        if not self._filters:
            return False
        event = json.loads(line)
        if not any(match(call.resource, event) for match in list(self._filters)):
            return False
        self.dropped_events.append((call.resource, event["type"], event["object"].get("metadata", {}).get("name", "")))
        return True

    def _url(self, request: web.Request) -> URL:
        return URL(f"{self._server}{request.raw_path}", encoded=True)


def _headers(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
