"""Both log formats, and that libraries and warnings use them too."""

import json
import logging
import subprocess
import sys

import pytest

from finetune_trainer.runtime.logs import JsonFormatter, LogSource, TextFormatter

RANK_3 = LogSource("rank 3", "news", 2, 3)
LAUNCHER = LogSource("launcher", "news", 2)


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("finetune_trainer.x", logging.INFO, "x.py", 1, message, args, None)
    made.created = 1767225600.25
    vars(made).update(more)
    return made


def test_a_text_line_has_time_and_source() -> None:
    assert TextFormatter(RANK_3).format(record("step %d", 7)) == "2026-01-01T00:00:00Z rank 3 INFO step 7"
    assert TextFormatter(LAUNCHER).format(record("100 % done")) == "2026-01-01T00:00:00Z launcher INFO 100 % done"


def test_a_json_line_has_the_metrics_as_fields() -> None:
    line = json.loads(JsonFormatter(RANK_3).format(record("step %d", 7, metrics={"step": 7, "loss": 0.5})))
    assert line == {
        "time": "2026-01-01T00:00:00.250Z", "level": "INFO", "job": "news", "attempt": 2, "rank": 3,
        "logger": "finetune_trainer.x", "message": "step 7", "step": 7, "loss": 0.5,
    }  # fmt: skip
    launcher = json.loads(JsonFormatter(LAUNCHER).format(record("hello")))
    assert launcher["process"] == "launcher"
    assert "rank" not in launcher


def test_metrics_replace_no_other_field_and_are_never_nan() -> None:
    text = JsonFormatter(RANK_3).format(record("x", metrics={"message": "y", "rank": 0, "loss": float("nan")}))
    line = json.loads(text, parse_constant=pytest.fail)
    assert (line["message"], line["rank"], "loss" in line) == ("x", 3, False)


def test_json_is_one_line_for_any_message_and_error() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        text = JsonFormatter(RANK_3).format(record("a\nb\u2028c", exc_info=sys.exc_info()))
    assert "\n" not in text
    assert json.loads(text)["message"] == "a\nb\u2028c"
    assert json.loads(text)["exception"].endswith("ValueError: first\nsecond")


LOG_SCRIPT = """
import logging, warnings
from finetune_trainer.runtime import logs
for name in ("datasets", "transformers"):  # as these libraries do when they are imported
    logging.getLogger(name).addHandler(logging.StreamHandler())
logging.getLogger("transformers").propagate = False
logs.configure(logs.LogSource("rank {rank}", "news", 1, {rank}), "Text")
logging.getLogger("finetune_trainer.a").info("ours")
logging.getLogger("finetune_trainer.a").warning("ours, too")
logging.getLogger("httpx").info("GET /")
logging.getLogger("datasets.load").warning("theirs")
logging.getLogger("transformers.x").warning("a hint")
warnings.warn("odd\\n  thing")
warnings.warn("old name", FutureWarning)
"""


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, ["rank 0 INFO ours", "rank 0 WARNING ours, too", "rank 0 WARNING theirs", "rank 0 WARNING UserWarning: odd thing"]),
        (1, ["rank 1 WARNING ours, too", "rank 1 WARNING theirs"]),
    ],
)
def test_libraries_and_warnings_use_our_format_and_hints_for_developers_are_left_out(rank: int, expected: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n" + LOG_SCRIPT.format(rank=rank)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = [line.partition(" ")[2].partition(" (<string>")[0] for line in ended.stderr.splitlines()]
    assert lines == expected
