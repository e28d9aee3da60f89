"""The Hub's answers as sentences: a small server answers as the Hub does, the real client asks."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import huggingface_hub
import pytest

from finetune_api import resource
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import Resolved
from finetune_trainer import hub

TOKEN = "hf_in_no_message"
Answers = dict[str, tuple[int, dict[str, str]]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """Path → status and headers; any other path is answered with 200 and a commit."""
    found: Answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers = found.get(self.path, (200, {}))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            body = json.dumps(
                {"sha": "c0ffee", "id": "a/b", "name": "me", "siblings": [], "url": f"http://{self.headers['Host']}/a/out"}
            ).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    server.shutdown()
    server.server_close()


def spec(**fields: Any) -> Any:
    return resource.parse_spec(
        {
            "task": "text-classification",
            "model": {"hub": {"name": "a/model"}},
            "datasets": [{"hub": {"name": "a/data"}}, {"claim": {"claimName": "c"}}],
            **fields,
        }
    )


def test_names_become_commits_and_a_claim_has_none(answers: Answers) -> None:
    assert hub.resolve(spec(), None) == Resolved(model_revision="c0ffee", dataset_revisions=["c0ffee", ""])


def test_commits_that_are_known_are_not_asked_for_again(answers: Answers) -> None:
    answers |= {path: (500, {}) for path in ("/api/models/a/model", "/api/datasets/a/data")}
    known = Resolved(model_revision="old", dataset_revisions=["older", ""])
    assert hub.resolve(spec(), known) == known


MODEL = "/api/models/a/model"
DATA = "/api/datasets/a/data"
WRITE = "/api/models/a/out/auth-check/write"
REFUSED_TOKEN = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
CASES: dict[str, tuple[Answers, Reason, str]] = {
    "no such model": (
        {MODEL: (404, {"X-Error-Code": "RepoNotFound"})},
        Reason.MODEL_NOT_FOUND,
        "spec.model.hub.name: there is no",
    ),
    "no such data": ({DATA: (404, {"X-Error-Code": "RepoNotFound"})}, Reason.DATASET_NOT_FOUND, r"spec.datasets\[0\].hub.name"),
    "no such revision": ({MODEL: (404, {"X-Error-Code": "RevisionNotFound"})}, Reason.MODEL_NOT_FOUND, "spec.model.hub.revision"),
    "gated": ({MODEL: (403, {"X-Error-Code": "GatedRepo"})}, Reason.HUB_AUTHENTICATION, "spec.model.hub: 'a/model' is gated"),
    "refused token": (
        {MODEL: REFUSED_TOKEN, "/api/whoami-v2": REFUSED_TOKEN},
        Reason.HUB_AUTHENTICATION,
        "spec.hub.tokenSecretRef: the Hub at .* refuses the token itself",
    ),
    "read-only token": ({WRITE: (403, {})}, Reason.HUB_AUTHENTICATION, "spec.publish: .* needs the right to write"),
    "Hub in trouble": ({DATA: (501, {})}, Reason.HUB_UNAVAILABLE, r"spec.datasets\[0\].hub: the Hub at .* answers 501"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_refusal_names_the_field_and_never_the_token(answers: Answers, name: str) -> None:
    told, reason, expected = CASES[name]
    answers |= told
    with pytest.raises(FineTuneError, match=expected) as refused:
        hub.resolve(spec(publish={"repository": "a/out"}), None)
    assert refused.value.reason is reason
    assert TOKEN not in str(refused.value)


def test_a_mirror_that_does_not_know_the_question_may_still_be_published_to(answers: Answers) -> None:
    answers[WRITE] = (404, {})
    assert hub.resolve(spec(publish={"repository": "a/out"}), None).model_revision == "c0ffee"


def test_a_hub_that_is_not_there_is_worth_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FineTuneError, match=r"spec\.model\.hub: the Hub at http://127\.0\.0\.1:1 can't be reached") as refused:
        hub.resolve(spec(), None)
    assert refused.value.reason is Reason.HUB_UNAVAILABLE
