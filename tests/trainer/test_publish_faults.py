"""Each fault of a Hub server ends in one commit, or in one sentence with the command that pushes later."""

import errno
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, constants

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.publish.push import push
from trainer.hub_server import COMMIT, NEEDS_A_HUB, SHARED, Hub, ask, spec

pytest_plugins = ["trainer.publish_fixtures"]
pytestmark = NEEDS_A_HUB


TRANSIENT: dict[str, tuple[str, dict[str, Any]]] = {
    "429 with Retry-After, commit": (COMMIT, {"status": 429, "headers": {"Retry-After": "7"}, "times": 2}),
    "429 with Retry-After, PUT": ("^/_lfs/", {"method": "PUT", "status": 429, "headers": {"Retry-After": "7"}}),
    "500, PUT": ("^/_lfs/", {"method": "PUT", "status": 500, "times": 3}),
    "500, commit": (COMMIT, {"status": 500}),
    "503, commit": (COMMIT, {"status": 503, "times": 3}),
    "503, create": ("/api/repos/create", {"status": 503}),
    "503, card": ("/api/validate-yaml", {"status": 503}),
    "502, batch": ("/info/lfs/objects/batch", {"status": 502, "times": 2}),
    "cut in the middle of a PUT": ("^/_lfs/", {"method": "PUT", "drop": True, "after_bytes": 1000, "times": 3}),
    "cut in the middle of the commit": (COMMIT, {"drop": True, "after_bytes": 100, "times": 2}),
    "no answer to a PUT": ("^/_lfs/", {"method": "PUT", "drop": True}),
    "no answer to create": ("/api/repos/create", {"drop": "answer"}),
    "slow": ("", {"delay": 0.3, "times": None}),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_transient_fault_ends_in_one_commit(hub: Hub, model: pathlib.Path, waits: list[float], name: str) -> None:
    path, fault = TRANSIENT[name]
    hub.fail(path, **fault)
    published = push(model, spec(hub), "news")
    ask("/_test/faults", "DELETE")
    assert published.commit == hub.api.model_info(hub.repository).sha
    assert hub.files() == SHARED
    assert hub.titles() == ["Fine-tuned by news"]
    if "Retry-After" in fault.get("headers", {}):
        assert [seconds for seconds in waits if seconds >= 7], "the wait follows Retry-After"
    assert bool(waits) is (name != "slow")


def test_a_commit_whose_answer_was_lost_is_not_made_again(hub: Hub, model: pathlib.Path, waits: list[float]) -> None:
    hub.fail(COMMIT, drop="answer")
    published = push(model, spec(hub), "news")
    assert hub.titles() == ["Fine-tuned by news"]
    assert published.commit == hub.api.model_info(hub.repository).sha
    assert len(hub.requests("POST", "/commit/")) == 1


def test_a_commit_of_another_client_in_between_is_kept(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = HfApi.create_commit
    others = ["LICENSE"]

    def create_commit(api: HfApi, *arguments: Any, **options: Any) -> Any:
        while others:
            api.upload_file(path_or_fileobj=b"x", path_in_repo=others.pop(), repo_id=hub.repository)
        return original(api, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    push(model, spec(hub), "news")
    assert hub.files() == SHARED | {"LICENSE"}
    assert len(hub.titles()) == 2


FINAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "401, commit": (COMMIT, {"status": 401}, "refuses access|can't be written to with this token"),
    "401, token": ("/api/", {"status": 401, "times": None}, "spec.hub.tokenSecretRef: the Hub at .* refuses the token itself"),
    "403, commit": (COMMIT, {"status": 403}, "needs the right to write to it"),
    "403, create": ("/api/repos/create", {"status": 403}, "needs the right to write to it"),
    "404, commit": (COMMIT, {"status": 404}, "404|there is no"),
    "409, commit": (COMMIT, {"status": 409}, "answers 409"),
    "409, create": ("/api/repos/create", {"status": 409}, "answers 409"),
    "400, card": ("/api/validate-yaml", {"status": 400}, "failed|answers 400"),
}


def test_a_commit_that_takes_longer_than_the_client_waits_is_not_made_twice(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    delay = 3.0
    monkeypatch.setattr("finetune_trainer.hub.client._TIMEOUT", httpx2.Timeout(delay / 3))
    hub.fail(COMMIT, delay=delay)
    published = push(model, spec(hub), "news")
    deadline = time.monotonic() + 3 * delay
    while len(hub.requests("POST", "/commit/")) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert waits
    assert hub.titles() == ["Fine-tuned by news"]
    assert published.commit == hub.api.model_info(hub.repository).sha


@pytest.mark.parametrize("name", FINAL)
def test_a_refusal_ends_the_push_at_once_and_names_the_command_for_later(
    hub: Hub, model: pathlib.Path, waits: list[float], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, fault, sentence = FINAL[name]
    hub.fail(path, **fault)
    with pytest.raises(FineTuneError, match=sentence) as failed:
        push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED
    assert failed.value.message.endswith(f"to push it later, run: finetune push {model} --to {hub.repository}")
    assert "\n" not in failed.value.message
    assert os.environ["HF_TOKEN"] not in failed.value.message + caplog.text
    assert waits == []
    assert (model / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "99999"}}])
def test_a_permanent_fault_ends_the_push_and_the_next_push_sends_only_the_rest(
    hub: Hub, model: pathlib.Path, waits: list[float], fault: dict[str, Any]
) -> None:
    hub.fail(COMMIT, times=None, **fault)
    with pytest.raises(FineTuneError, match="to push it later, run: finetune push") as failed:
        push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED
    assert sum(waits) <= 1200, "a Retry-After of hours is limited"
    assert len(hub.requests("PUT", "/_lfs/")) == 2
    ask("/_test/faults", "DELETE")
    hub.forget_requests()
    push(model, spec(hub), "news")
    assert hub.requests("PUT", "/_lfs/") == []
    assert hub.titles() == ["Fine-tuned by news"]


def test_an_unreachable_hub_ends_the_push(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FineTuneError, match="can't be reached") as failed:
        push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Permission denied", "config.json")]
)
def test_a_local_error_gives_a_sentence(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def create_commit(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    with pytest.raises(FineTuneError, match=f"{error.strerror}.*to push it later, run") as failed:
        push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED
    assert waits == []


def test_a_push_needs_no_disk_space(hub: Hub, model: pathlib.Path) -> None:
    script = "import sys, pathlib; from finetune_trainer.publish.push import upload; "
    script += "print(upload(pathlib.Path(sys.argv[1]), sys.argv[2], True, 'm', '--to').commit)"
    nowhere = {"HOME": "/proc/none", "HF_HOME": "/proc/none", "TMPDIR": "/proc/none"}
    path = os.pathsep.join(["crds", "trainer_image"])
    done = subprocess.run(
        [sys.executable, "-c", script, str(model), hub.repository],
        env=os.environ | nowhere | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == hub.api.model_info(hub.repository).sha, done.stderr


def test_a_server_without_xet_is_pushed_to_by_lfs(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    hub.fail("^/_xet/", status=404, times=None)
    hub.fail("/xet-write-token/", status=404, times=None)
    push(model, spec(hub), "news")
    assert hub.files() == SHARED
    assert len(hub.requests("PUT", "/_lfs/")) == 2
