"""Fixtures: a fake API server, a kubeconfig for it, and a runner for the commands."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from client.fake_api_server import TOKEN, FakeApiServer
from finetune_client import FineTune
from finetune_client.cli import cli


class Clock:
    """A sleep function that returns at once. then: callbacks for the next calls, one per call."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.then: list[Callable[[], object]] = []

    def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)
        assert len(self.pauses) < 1000, "the code polls forever"
        if self.then:
            self.then.pop(0)()


@pytest.fixture
def output(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder that a pod sees as its volume."""
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder


@pytest.fixture
def server(output: pathlib.Path) -> Iterator[FakeApiServer]:
    with FakeApiServer(output) as server:
        yield server


@pytest.fixture
def kubeconfig(server: FakeApiServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The path of a kubeconfig. Its current context has the namespace team, its other context the namespace others."""
    contexts = [
        {"name": "here", "context": {"cluster": "test", "user": "me", "namespace": "team"}},
        {"name": "there", "context": {"cluster": "test", "user": "me", "namespace": "others"}},
    ]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "test", "cluster": {"server": server.address}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": contexts,
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(kubeconfig: pathlib.Path, clock: Clock) -> FineTune:
    return FineTune(sleep=clock)


@pytest.fixture
def run(kubeconfig: pathlib.Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command, as in ``run("why", "news")``, and return its output and exit code. Polls do not wait."""
    monkeypatch.setattr("finetune_client.options.FineTune", functools.partial(FineTune, sleep=clock))

    def invoke(*arguments: Any, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert TOKEN not in result.output
        return result

    return invoke
