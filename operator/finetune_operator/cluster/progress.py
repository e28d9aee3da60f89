"""Requests the progress of a training pod. The response is not trusted: no redirects, a size limit, a strict schema, no NaN."""

import aiohttp

from finetune_api import names
from finetune_api.wire import Report

_TIMEOUT_SECONDS = 2.0
_MAX_BODY_BYTES = 64 * 1024


class ProgressClient:
    """Requests /progress, with one session for all pods and without proxies and cookies."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    def open(cls) -> "ProgressClient":
        """Open a session.

        It closes each connection after the response, because pods exist for a limited time. It does not limit the number of
        connections, so a slow pod does not delay the others.
        """
        return cls(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS),
                trust_env=False,
                auto_decompress=False,  # so that the size limit holds for what is in memory, too
            )
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def pull(self, address: str, port: int = names.PORT_TELEMETRY) -> Report | None:
        """Return the report of the pod with that IP address, or None if there is no valid response."""
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(f"http://{host}:{port}/progress", allow_redirects=False) as response:
                if response.status != 200:
                    return None
                body = await response.content.read(_MAX_BODY_BYTES + 1)
                while len(body) <= _MAX_BODY_BYTES and (chunk := await response.content.read(_MAX_BODY_BYTES)):
                    body += chunk
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        if len(body) > _MAX_BODY_BYTES:
            return None
        return Report.read(body)
