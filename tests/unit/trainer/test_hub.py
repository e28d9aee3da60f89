"""Errors of the Hub as sentences. A small server answers like the Hub, and the real client sends the requests."""

import http.server
import json
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from finetune_api import resource
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.status import Resolved
from finetune_trainer.commands.locate import find_model
from finetune_trainer.hub.client import ensure_repository, explain_errors, resolve_revisions, retry

TOKEN = "hf_in_no_message"
Answers = dict[str, tuple[int, dict[str, str]]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """Path → status and headers; every other path gets 200 and a commit."""
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


def test_hub_names_are_resolved_to_commits_and_a_claim_has_none(answers: Answers) -> None:
    assert resolve_revisions(spec(), None) == Resolved(model_revision="c0ffee", dataset_revisions=["c0ffee", ""])


def test_known_commits_are_not_requested_again(answers: Answers) -> None:
    answers |= {path: (500, {}) for path in ("/api/models/a/model", "/api/datasets/a/data")}
    known = Resolved(model_revision="old", dataset_revisions=["older", ""])
    assert resolve_revisions(spec(), known) == known


MODEL = "/api/models/a/model"
DATA = "/api/datasets/a/data"


def test_a_name_that_is_neither_a_directory_nor_a_repository_is_refused_with_both_words(
    answers: Answers, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `make demo` creates runs/news
    answers["/api/models/runs/news/revision/main"] = (404, {"X-Error-Code": "RepoNotFound"})
    with pytest.raises(FineTuneError) as refused:
        find_model(pathlib.Path("runs/news"))
    assert refused.value.message.startswith("there is no directory runs/news; as a repository on the Hub, runs/news: there is no")
    assert "spec." not in refused.value.message


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
    "Hub error": ({DATA: (501, {})}, Reason.HUB_UNAVAILABLE, r"spec.datasets\[0\].hub: the Hub at .* answers 501"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_refusal_names_the_field_and_never_the_token(answers: Answers, name: str) -> None:
    responses, reason, expected = CASES[name]
    answers |= responses
    with pytest.raises(FineTuneError, match=expected) as refused:
        resolve_revisions(spec(publish={"repository": "a/out"}), None)
    assert refused.value.reason is reason
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(("path", "headers"), [("/api/repos/create", {}), (WRITE, {"X-Error-Code": "RepoNotFound"})])
def test_a_push_without_any_token_is_refused_before_the_training(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, path: str, headers: dict[str, str]
) -> None:
    """Not as a failed push, whose hint is how to push the model that is kept: there is none yet."""
    monkeypatch.delenv("HF_TOKEN")
    answers |= {"/api/models/a/out": (404, {"X-Error-Code": "RepoNotFound"}), path: (401, headers)}
    with pytest.raises(FineTuneError, match=r"spec\.publish: a push to 'a/out' needs a token, and there is none") as caught:
        resolve_revisions(spec(publish={"repository": "a/out"}), None)
    assert caught.value.reason == Reason.HUB_AUTHENTICATION
    assert "spec.hub.tokenSecretRef" in caught.value.message


def test_a_mirror_without_the_auth_check_may_still_be_published_to(answers: Answers) -> None:
    answers[WRITE] = (404, {})
    assert resolve_revisions(spec(publish={"repository": "a/out"}), None).model_revision == "c0ffee"


def test_an_unreachable_hub_has_a_reason_that_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FineTuneError, match=r"spec\.model\.hub: the Hub at http://127\.0\.0\.1:1 can't be reached") as refused:
        resolve_revisions(spec(), None)
    assert refused.value.reason is Reason.HUB_UNAVAILABLE


def refusal(status: int, **headers: str) -> HfHubHTTPError:
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("POST", "http://hub/"))
    return HfHubHTTPError("no", response=response)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (refusal(503), [2, 4, 8, 16]),
        (refusal(429, **{"Retry-After": "7"}), [7, 7, 7, 7]),
        (refusal(429, **{"Retry-After": "86400"}), [300, 300, 300, 300]),
        (refusal(412), [2, 4, 8, 16]),
        (httpx2.ReadError("cut"), [2, 4, 8, 16]),
        (refusal(401), []),
        (refusal(403), []),
        (refusal(404), []),
        (refusal(409), []),
        (ValueError("ours"), []),
    ],
    ids=str,
)
def test_only_transient_errors_are_retried(monkeypatch: pytest.MonkeyPatch, error: Exception, seconds: list[float]) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)

    def fail() -> None:
        try:
            raise error
        except Exception as cause:  # as the client wraps errors of an upload
            raise RuntimeError("Error while uploading") from cause

    with pytest.raises(RuntimeError, match="uploading"):
        retry(fail)
    assert waited == seconds


class ConflictingApi:
    """A Hub that refuses to create a repository. exists: its answers to repo_exists, in order."""

    def __init__(self, *exists: bool) -> None:
        self.exists = list(exists)

    def repo_exists(self, repository: str) -> bool:
        return self.exists.pop(0)

    def create_repo(self, repository: str, private: bool) -> None:
        raise refusal(409)


def test_a_repository_that_another_client_creates_at_the_same_time_is_used() -> None:
    api: Any = ConflictingApi(False, True)
    ensure_repository(api, "a/out", private=True)
    assert api.exists == []


def test_a_conflict_without_a_repository_is_raised() -> None:
    api: Any = ConflictingApi(False, False)
    with pytest.raises(HfHubHTTPError):
        ensure_repository(api, "a/out", private=True)


def test_offline_mode_is_reported_as_an_unreachable_hub() -> None:
    with (
        pytest.raises(FineTuneError, match="can't be reached") as raised,
        explain_errors("spec.model.hub", "a/b", Reason.MODEL_NOT_FOUND),
    ):
        raise OfflineModeIsEnabled("offline mode is enabled")
    assert raised.value.reason is Reason.HUB_UNAVAILABLE
