"""The operator's log."""

import json
import logging
from collections.abc import Iterator

import pytest

from finetune_operator import logs
from finetune_operator.__main__ import _parser

OURS, THEIRS = logging.getLogger("finetune_operator.reconcile"), logging.getLogger("kopf.objects")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("finetune_operator")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    ours.setLevel(own_level)


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return what an operator with these arguments logs."""
    options = _parser().parse_args(["run", *arguments])
    logs.configure(options.log_format, options.log_level)
    OURS.debug("debug")
    OURS.info("team/news: %s", "Running\nof two")
    THEIRS.info("of a library")
    THEIRS.warning("warning")
    try:
        raise ValueError("bad")
    except ValueError:
        OURS.exception("failed")
    return capsys.readouterr().err.splitlines()


def test_each_line_of_json_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in written(capsys, "--log-format=JSON")]
    assert [(line["level"], line["logger"], line["message"]) for line in lines] == [
        ("INFO", "finetune_operator.reconcile", "team/news: Running\nof two"),
        ("WARNING", "kopf.objects", "warning"),
        ("ERROR", "finetune_operator.reconcile", "failed"),
    ]
    assert lines[0].keys() == {"time", "level", "logger", "message"}
    assert "ValueError: bad" in lines[2]["exception"]


def test_the_level_is_that_of_the_operator_and_libraries_log_less(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split()[2] for line in written(capsys) if line.startswith("20")] == ["INFO", "WARNING", "ERROR"]
    assert [line.split()[2] for line in written(capsys, "--log-level=DEBUG") if line.startswith("20")] == [
        "DEBUG",
        "INFO",
        "WARNING",
        "ERROR",
    ]
    assert [line.split()[2] for line in written(capsys, "--log-level=ERROR") if line.startswith("20")] == ["ERROR"]
