"""Pushes to a real Hub server, and each of its faults: HF_ENDPOINT and HF_TOKEN say which; it must know /_test/faults."""

import errno
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import HfApi, constants

from finetune_api import names, resource
from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer import publish
from finetune_trainer.push import push

ENDPOINT = os.environ.get("HF_ENDPOINT", "")
COMMIT = "/api/models/[^/]+/[^/]+/commit/"


def ask(path: str, method: str = "GET", body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(ENDPOINT + path, data, method=method)  # noqa: S310 - the test's own server
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.loads(answer.read() or b"null")


def faults_can_be_injected() -> bool:
    try:
        ask("/_test/faults")
    except (urllib.error.URLError, ValueError):
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not ENDPOINT, reason="needs a Hub: HF_ENDPOINT and HF_TOKEN are not set"),
    pytest.mark.skipif(bool(ENDPOINT) and not faults_can_be_injected(), reason="the Hub at HF_ENDPOINT injects no faults"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the Hub's client, in every upload by LFS
]


class Hub:
    """The server's other side: its faults, what it was asked, and what it holds."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.api = HfApi()

    def fail(self, path: str, **fault: Any) -> None:
        """Arm a fault: status, headers, drop, after_bytes, delay, times."""
        ask("/_test/faults", "POST", [{"path": path} | fault])

    def requests(self, method: str, path: str) -> list[dict[str, Any]]:
        found = [entry for entry in ask("/_test/requests") if entry["method"] == method and path in entry["path"]]
        return [entry for entry in found if self.repository in entry["path"] or "/_lfs/" in entry["path"]]

    def forget_requests(self) -> None:
        ask("/_test/requests", "DELETE")

    def titles(self) -> list[str]:
        """Of the commits, the newest first, without that which made the repository."""
        return [commit.title for commit in self.api.list_repo_commits(self.repository)][:-1]

    def files(self) -> set[str]:
        return set(self.api.list_repo_files(self.repository)) - {".gitattributes"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    ask("/_test/faults", "DELETE")
    owner = HfApi().whoami()["name"]
    made = Hub(f"{owner}/publish-{os.getpid()}-{time.monotonic_ns()}")
    made.forget_requests()
    yield made
    ask("/_test/faults", "DELETE")
    made.api.delete_repo(made.repository, missing_ok=True)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for, none of which is waited for."""
    asked: list[float] = []
    really = time.sleep

    def note(seconds: float) -> None:
        asked.append(seconds)
        really(0.01)

    monkeypatch.setattr(time, "sleep", note)
    return asked


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small model in two shards that no Hub has seen, with everything beside it that must never leave."""
    from transformers import BertConfig, BertForSequenceClassification

    directory = tmp_path_factory.mktemp("out") / "model"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=2000, **shape)  # type: ignore[arg-type]
    BertForSequenceClassification(config).save_pretrained(directory, max_shard_size="150KB")
    assert len(list(directory.glob("*.safetensors"))) == 2
    (directory / "README.md").write_text(
        f"---\ntags: [a]\n---\n# out\nfrom {directory} by {os.environ['HF_TOKEN']}: owner/name\n"
    )
    (directory / "tokenizer_config.json").write_text(json.dumps({"name_or_path": "/somewhere/else", "model_max_length": 8}))
    for private in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "notes.txt", ".env", "run.py"):
        (directory / private).write_text("secret")
    (directory / "checkpoint-3").mkdir()
    (directory / "checkpoint-3" / "model.safetensors").write_text("secret")
    return directory


SHARED = {"README.md", "config.json", "tokenizer_config.json", "model.safetensors.index.json"} | {
    f"model-0000{number}-of-00002.safetensors" for number in (1, 2)
}


def spec(hub: Hub, **fields: Any) -> Any:
    return resource.parse_spec(
        {
            "task": "text-classification",
            "model": {"claim": {"claimName": "m"}},
            "datasets": [{"claim": {"claimName": "d"}}],
            "publish": {"repository": hub.repository} | fields,
        }
    )


def test_it_is_private_whole_and_names_its_commit(hub: Hub, model: pathlib.Path) -> None:
    published = publish.push(model, spec(hub), "news")
    info = hub.api.model_info(hub.repository)
    assert published.url == f"{ENDPOINT}/{hub.repository}"
    assert published.commit == info.sha
    assert info.private
    assert hub.files() == SHARED
    assert hub.titles() == ["Fine-tuned by news"]


def test_it_is_public_where_that_is_asked_for(hub: Hub, model: pathlib.Path) -> None:
    publish.push(model, spec(hub, visibility="Public"), "news")
    assert not hub.api.model_info(hub.repository).private


def test_it_can_be_loaded(hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from transformers import AutoModelForSequenceClassification

    publish.push(model, spec(hub), "news")
    there = hub.api.snapshot_download(hub.repository, local_dir=tmp_path / "there")
    loaded = AutoModelForSequenceClassification.from_pretrained(there).state_dict()
    ours = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    assert all(loaded[name].equal(ours[name]) for name in ours)


def test_no_file_names_the_token_or_a_directory_and_the_card_names_the_repository(
    hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    publish.push(model, spec(hub), "news")
    there = pathlib.Path(hub.api.snapshot_download(hub.repository, local_dir=tmp_path / "there"))
    texts = "".join(path.read_text() for path in there.iterdir() if path.name in SHARED and path.suffix != ".safetensors")
    for private in (os.environ["HF_TOKEN"], str(model), str(model.parent), "/somewhere/else", os.uname().nodename + "-"):
        assert private not in texts
    assert f"from [removed] by [removed]: {hub.repository}" in texts
    assert str(model) in (model / "README.md").read_text(), "on the disk nothing was changed"


def test_the_same_again_sends_nothing_and_makes_no_commit(hub: Hub, model: pathlib.Path) -> None:
    first = publish.push(model, spec(hub), "news")
    hub.forget_requests()
    assert publish.push(model, spec(hub), "news") == first
    assert hub.requests("PUT", "/_lfs/") == []
    assert hub.requests("POST", "/commit/") == []
    assert len(hub.titles()) == 1


def test_weights_of_an_earlier_model_go_and_other_files_stay(hub: Hub, model: pathlib.Path) -> None:
    hub.api.create_repo(hub.repository)
    for name in ("model.safetensors", "adapter_config.json", "pytorch_model.bin", "LICENSE", "onnx/model.safetensors"):
        hub.api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id=hub.repository)
    publish.push(model, spec(hub), "news")
    assert hub.files() == SHARED | {"LICENSE", "onnx/model.safetensors"}


HEALED: dict[str, tuple[str, dict[str, Any]]] = {
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


@pytest.mark.parametrize("name", HEALED)
def test_trouble_that_passes_ends_in_one_commit(hub: Hub, model: pathlib.Path, waits: list[float], name: str) -> None:
    path, fault = HEALED[name]
    hub.fail(path, **fault)
    published = publish.push(model, spec(hub), "news")
    ask("/_test/faults", "DELETE")
    assert published.commit == hub.api.model_info(hub.repository).sha
    assert hub.files() == SHARED
    assert hub.titles() == ["Fine-tuned by news"]
    if "Retry-After" in fault.get("headers", {}):
        assert [seconds for seconds in waits if seconds >= 7], "the Hub says how long"
    assert bool(waits) is (name != "slow")


def test_a_commit_whose_answer_was_lost_is_not_made_again(hub: Hub, model: pathlib.Path, waits: list[float]) -> None:
    hub.fail(COMMIT, drop="answer")
    published = publish.push(model, spec(hub), "news")
    assert hub.titles() == ["Fine-tuned by news"]
    assert published.commit == hub.api.model_info(hub.repository).sha
    assert len(hub.requests("POST", "/commit/")) == 1


def test_a_commit_of_somebody_else_in_between_is_kept(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = HfApi.create_commit
    others = ["LICENSE"]

    def create_commit(api: HfApi, *arguments: Any, **options: Any) -> Any:
        while others:
            api.upload_file(path_or_fileobj=b"x", path_in_repo=others.pop(), repo_id=hub.repository)
        return really(api, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    publish.push(model, spec(hub), "news")
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
    monkeypatch.setattr("finetune_trainer.hub._TIMEOUT", httpx2.Timeout(delay / 3))
    hub.fail(COMMIT, delay=delay)
    published = publish.push(model, spec(hub), "news")
    deadline = time.monotonic() + 3 * delay
    while len(hub.requests("POST", "/commit/")) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert waits
    assert hub.titles() == ["Fine-tuned by news"]
    assert published.commit == hub.api.model_info(hub.repository).sha


@pytest.mark.parametrize("name", FINAL)
def test_a_refusal_ends_at_once_with_the_command_for_later(
    hub: Hub, model: pathlib.Path, waits: list[float], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, fault, sentence = FINAL[name]
    hub.fail(path, **fault)
    with pytest.raises(FineTuneError, match=sentence) as failed:
        publish.push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED
    assert failed.value.message.endswith(f"this pushes it later: finetune push {model} --to {hub.repository}")
    assert "\n" not in failed.value.message
    assert os.environ["HF_TOKEN"] not in failed.value.message + caplog.text
    assert waits == []
    assert (model / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "99999"}}])
def test_trouble_that_stays_ends_too_and_the_next_push_sends_only_the_rest(
    hub: Hub, model: pathlib.Path, waits: list[float], fault: dict[str, Any]
) -> None:
    hub.fail(COMMIT, times=None, **fault)
    with pytest.raises(FineTuneError, match="this pushes it later: finetune push") as failed:
        publish.push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED
    assert sum(waits) <= 1200, "nobody waits for an answer of hours"
    assert len(hub.requests("PUT", "/_lfs/")) == 2
    ask("/_test/faults", "DELETE")
    hub.forget_requests()
    publish.push(model, spec(hub), "news")
    assert hub.requests("PUT", "/_lfs/") == []
    assert hub.titles() == ["Fine-tuned by news"]


def test_a_hub_that_is_not_there_ends_too(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FineTuneError, match="can't be reached") as failed:
        publish.push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(errno.EACCES, "Permission denied", "config.json")]
)
def test_what_is_wrong_with_this_machine_is_a_sentence(
    hub: Hub, model: pathlib.Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def create_commit(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    with pytest.raises(FineTuneError, match=f"{error.strerror}.*this pushes it later") as failed:
        publish.push(model, spec(hub), "news")
    assert failed.value.reason is Reason.HUB_PUSH_FAILED
    assert waits == []


def test_a_push_needs_no_room_on_a_disk(hub: Hub, model: pathlib.Path) -> None:
    script = "import sys, pathlib; from finetune_trainer import publish; "
    script += "print(publish.upload(pathlib.Path(sys.argv[1]), sys.argv[2], True, 'm', '--to').commit)"
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
    publish.push(model, spec(hub), "news")
    assert hub.files() == SHARED
    assert len(hub.requests("PUT", "/_lfs/")) == 2


def test_each_best_model_is_pushed_beside_the_training(hub: Hub, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    best = tmp_path / "best" / "step-1"
    shutil.copytree(model, best)
    hub.fail(COMMIT, delay=0.5, times=1)
    pusher = publish.BestPusher(spec(hub), "news")
    pusher.submit(best, 1, {"accuracy": 0.5})
    for step in (2, 3):
        moved = tmp_path / "best" / f"step-{step}"
        best.rename(moved)
        best = moved
        changed = (best / "config.json").read_text().replace("{", "{\n", 1)
        (best / "config.json").unlink()
        (best / "config.json").write_text(changed)
        time.sleep(0.1)
        pusher.submit(best, step, {"accuracy": 0.5 + step / 10})
    shutil.rmtree(best)
    pusher.close()
    assert hub.titles() == ["Step 3 of news: accuracy 0.8000", "Step 1 of news: accuracy 0.5000"]
    assert pusher.failures == 0
    assert list((tmp_path / "best").iterdir()) == []


def test_a_best_model_that_can_not_be_pushed_stops_nothing(
    hub: Hub, model: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail(COMMIT, status=403, times=None)
    pusher = publish.BestPusher(spec(hub), "news")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        pusher.submit(model, 1, {"accuracy": 0.5})
        assert time.monotonic() - started < 1
        pusher.close()
    assert pusher.failures == 1
    assert "the training goes on" in caplog.text


def test_a_push_that_hangs_does_not_keep_the_training_from_ending(hub: Hub, model: pathlib.Path) -> None:
    hub.fail(COMMIT, delay=5)
    pusher = publish.BestPusher(spec(hub), "news")
    pusher.submit(model, 1, {"accuracy": 0.5})
    started = time.monotonic()
    pusher.close(timeout_seconds=0.5)
    assert time.monotonic() - started < 2


def call(*arguments: object) -> Result:
    return CliRunner().invoke(push, [str(argument) for argument in arguments])


def test_the_command_says_address_and_commit_and_makes_a_private_repository(hub: Hub, model: pathlib.Path) -> None:
    done = call(model.parent, "--to", hub.repository)
    assert done.exit_code == 0, done.output
    info = hub.api.model_info(hub.repository)
    assert done.stdout == f"{ENDPOINT}/{hub.repository}\ncommit {info.sha}\n"
    assert info.private


def test_the_command_knows_the_repository_of_the_job(hub: Hub, model: pathlib.Path) -> None:
    (model.parent / "run.json").write_text(json.dumps({"name": "news", "repository": hub.repository}))
    assert call(model, "--public").exit_code == 0
    assert not hub.api.model_info(hub.repository).private
    assert hub.titles() == ["Fine-tuned by news"]


def test_the_command_names_the_option_and_the_variable_of_a_refusal(hub: Hub, model: pathlib.Path) -> None:
    hub.fail(COMMIT, status=403)
    done = call(model, "--to", hub.repository)
    assert done.exit_code == names.EXIT_REFUSED
    assert "--to: the Hub refuses access" in done.stderr
    assert "the token of HF_TOKEN needs the right to write to it" in done.stderr
    assert "Traceback" not in done.output
