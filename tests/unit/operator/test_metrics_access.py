"""The metrics with TLS: who may read them, and with which certificate they are served."""

import asyncio
import pathlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.test_utils import unused_port
from prometheus_client import CollectorRegistry, Gauge

from finetune_operator.cluster.lease import NotLeadingError
from finetune_operator.health import Health
from finetune_operator.server import certificate
from finetune_operator.server.access import MetricsAccess
from finetune_operator.server.app import SecureMetrics, start_servers
from finetune_operator.server.certificate import build_tls_context, load_certificate, reload_certificate
from unit.operator.fake_server import Answer, FakeServer, refusal

# Token → user. Only Prometheus may get /metrics.
USERS = {"of-prometheus": "system:serviceaccount:monitoring:prometheus", "of-a-pod": "system:serviceaccount:team:default"}


class Reviewer(FakeServer):
    """An API server that answers reviews. failure: its answer to everything, if set."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Answer | None = None

    async def call_api(self, method: str, url: Any, headers: Any, body: Any, _request_timeout: float) -> Answer:
        self.requests.append(body["kind"])
        self.bodies.append(body)
        spec = body["spec"]
        if self.failure:
            return self.failure
        if body["kind"] == "SubjectAccessReview":
            assert spec["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}
            return Answer(201, {"status": {"allowed": spec["user"] == USERS["of-prometheus"] and spec["groups"] == ["accounts"]}})
        user = {"username": USERS.get(spec["token"], ""), "groups": ["accounts"]}
        return Answer(201, {"status": {"authenticated": True, "user": user} if user["username"] else {}})


class Harness:
    """Servers on free ports, their API server, and the time that they see."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.reviewer = Reviewer()
        self.now = 0.0
        self.port, self.probes_port = unused_port(), unused_port()
        self.tls = tls
        api = self.reviewer.api()
        api.set_write_check(_refuse)
        self.access = MetricsAccess(api.without_write_check(), lambda: self.now)
        self.registry = CollectorRegistry()
        Gauge("depth", "Depth.", registry=self.registry)

    async def get(self, token: str | None, path: str = "/metrics", scheme: str = "Bearer", tls: Any = False) -> tuple[int, str]:
        headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://localhost:{self.port}{path}", headers=headers, ssl=tls) as response,
        ):
            return response.status, await response.text()


def _refuse() -> None:
    raise NotLeadingError("this process does not hold the Lease")


@pytest_asyncio.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = Harness(build_tls_context(None, "localhost"))
    secure = SecureMetrics(harness.port, harness.tls, harness.access)
    servers = await start_servers(harness.probes_port, secure, Health(lambda: 0.0), harness.registry, lambda: None)
    yield harness
    for server in servers:
        await server.cleanup()


@pytest.mark.parametrize(
    ("token", "scheme", "status", "message"),
    [
        ("of-prometheus", "Bearer", 200, "depth 0.0"),
        ("of-prometheus", "bearer", 200, "depth 0.0"),
        ("of-a-pod", "Bearer", 403, "system:serviceaccount:team:default may not get /metrics: add it to metrics.readers"),
        ("of-nobody", "Bearer", 401, "the API server does not accept the token"),
        ("of-prometheus", "Basic", 401, "Authorization: Bearer TOKEN"),
        ("", "Bearer", 401, "Authorization: Bearer TOKEN"),
        ("x" * 7000 + " " * 1000, "Bearer", 401, "does not accept"),
        (None, "", 401, "Authorization: Bearer TOKEN"),
    ],
)
async def test_who_may_read_the_metrics(harness: Harness, token: str | None, scheme: str, status: int, message: str) -> None:
    found, text = await harness.get(token, scheme=scheme)
    assert found == status, text
    assert message in text
    assert token is None or len(token) < 9 or token not in text


async def test_nothing_but_the_metrics_is_served_there(harness: Harness) -> None:
    assert (await harness.get("of-prometheus", "/healthz"))[0] == 404
    assert (await harness.get(None, "/healthz"))[0] == 401


async def test_plain_http_answers_probes_only(harness: Harness) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://localhost:{harness.port}/metrics")
        for path, status in (("/healthz", 200), ("/readyz", 503), ("/metrics", 404)):
            async with session.get(f"http://localhost:{harness.probes_port}{path}") as response:
                assert response.status == status


async def test_a_decision_holds_for_a_minute(harness: Harness) -> None:
    for token in ("of-prometheus", "of-a-pod"):
        for _ in range(3):
            await harness.get(token)
    assert harness.reviewer.requests == ["TokenReview", "SubjectAccessReview"] * 2
    harness.now = 61
    await harness.get("of-prometheus")
    assert len(harness.reviewer.requests) == 6


async def test_no_token_can_be_reviewed_without_the_api_server(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    harness.reviewer.failure = refusal(403, "Forbidden", "cannot create resource tokenreviews")
    assert await harness.get("of-prometheus") == (503, "the token can't be reviewed; the operator's log says why")
    assert "cannot create resource tokenreviews" in caplog.text
    assert "of-prometheus" not in caplog.text
    harness.reviewer.failure = None
    assert (await harness.get("of-prometheus"))[0] == 200, "a failure is not kept"


async def test_a_renewed_certificate_is_served(harness: Harness, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_RELOAD_SECONDS", 0.01)
    reload = asyncio.create_task(reload_certificate(harness.tls, tmp_path))
    await asyncio.sleep(0.1)
    assert not reload.done(), "an unreadable certificate leaves the last one in use"
    assert (await harness.get("of-prometheus"))[0] == 200
    certificate._write_self_signed(tmp_path, "localhost")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
    trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for _ in range(500):
        try:
            assert (await harness.get("of-prometheus", tls=trusted))[0] == 200
            break
        except aiohttp.ClientConnectorCertificateError:
            await asyncio.sleep(0.02)
    else:
        pytest.fail("the renewed certificate is not in use")
    reload.cancel()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_can_t_be_used_is_refused_in_a_sentence(tmp_path: pathlib.Path, content: str | None) -> None:
    if content:
        for name in ("tls.crt", "tls.key"):
            (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"needs tls\.crt and tls\.key, as a Secret of type kubernetes\.io/tls has them"):
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path)
