"""Ask a training pod how far it is. What answers is not trusted: no redirects, a capped body, typed, no NaN."""

import aiohttp
import pydantic

from finetune_api import names
from finetune_api.wire import Report

_TIMEOUT_SECONDS = 2.0
_LARGEST_BODY_BYTES = 64 * 1024


class ProgressClient:
    """Pulls /progress; one session for all pods, without proxies and cookies."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    def open(cls) -> "ProgressClient":
        """Pods come and go, so connections are not kept; one pod that answers slowly holds up no other."""
        return cls(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS),
                trust_env=False,
            )
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def pull(self, address: str, port: int = names.PORT_TELEMETRY) -> Report | None:
        """The Report of the pod with that IP address; None if there is no answer, or none that can be understood."""
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(f"http://{host}:{port}/progress", allow_redirects=False) as response:
                if response.status != 200:
                    return None
                body = await response.content.read(_LARGEST_BODY_BYTES + 1)
                while len(body) <= _LARGEST_BODY_BYTES and (chunk := await response.content.read(_LARGEST_BODY_BYTES)):
                    body += chunk
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        if len(body) > _LARGEST_BODY_BYTES:
            return None
        try:
            return Report.model_validate_json(body)
        except pydantic.ValidationError:
            return None
