"""Who may read the metrics that the operator serves with TLS: whoever the cluster's RBAC allows to get /metrics."""

import hashlib
import logging
import time
from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from cachetools import TTLCache

from finetune_operator.cluster.api import Api, ApiError

logger = logging.getLogger(__name__)

# A decision holds for so long. The cache is bounded, because a stranger may send a new token each time.
_CACHE_SECONDS = 60
_CACHE_SIZE = 256


class MetricsAccess:
    """Authenticates a bearer token with a TokenReview, and authorizes its user with a SubjectAccessReview.

    api: its connection must not check for leadership, because each replica serves metrics. clock: monotonic seconds.
    """

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._decisions: TTLCache[bytes, tuple[int, str] | None] = TTLCache(_CACHE_SIZE, _CACHE_SECONDS, timer=clock)

    async def review(self, token: str) -> tuple[int, str] | None:
        """Return an HTTP status and a sentence if the owner of the token may not read the metrics, else None.

        Raise ApiError if the API server does not answer.
        """
        # The key is a hash, so that this process does not keep the tokens of others.
        key = hashlib.sha256(token.encode()).digest()
        if key not in self._decisions:
            self._decisions[key] = await self._send_reviews(token)
        return self._decisions[key]

    async def _send_reviews(self, token: str) -> tuple[int, str] | None:
        authentication = await self._api.review(
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        )
        if not authentication.get("authenticated"):
            return 401, "the API server does not accept the token"
        user = authentication["user"]
        access = await self._api.review(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
                    "user": user["username"],
                    **{field: user[field] for field in ("uid", "groups", "extra") if field in user},
                },
            }
        )
        if not access["allowed"]:
            return 403, f"{user['username']} may not get /metrics: add it to metrics.readers in the values of the chart"
        return None


def require_access(access: MetricsAccess) -> Middleware:
    """Return a middleware that answers requests only if their token may read the metrics."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return web.Response(text="send the token of a ServiceAccount: Authorization: Bearer TOKEN", status=401)
        try:
            refusal = await access.review(token)
        except ApiError as error:
            logger.warning("the token of a request for the metrics can't be reviewed: %s", error)
            return web.Response(text="the token can't be reviewed; the operator's log says why", status=503)
        if refusal is not None:
            code, message = refusal
            return web.Response(text=message, status=code)
        return await handler(request)

    return check
