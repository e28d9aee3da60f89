"""A small API server, and a kubeconfig that leads to it."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from client.api_server import TOKEN, ApiServer
from finetune_client import FineTune
from finetune_client.cli import cli


class Clock:
    """Waits for nobody. then: what happens during the next pauses, one after the other."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.then: list[Callable[[], object]] = []

    def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)
        assert len(self.pauses) < 1000, "waits without end"
        if self.then:
            self.then.pop(0)()


@pytest.fixture
def output(tmp_path: pathlib.Path) -> pathlib.Path:
    """What a pod of the job would see as its volume."""
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder


@pytest.fixture
def server(output: pathlib.Path) -> Iterator[ApiServer]:
    with ApiServer(output) as server:
        yield server


@pytest.fixture
def kubeconfig(server: ApiServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Its path; the current context is of the namespace team, another one of the namespace others."""
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
    """``run("why", "news")``: what the command says and ends with; nothing waits between two looks."""
    monkeypatch.setattr("finetune_client.options.FineTune", functools.partial(FineTune, sleep=clock))

    def invoke(*arguments: Any, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert TOKEN not in result.output
        return result

    return invoke
