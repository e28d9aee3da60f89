"""The end of a pod's log stays in the output directory when the pod is deleted."""

import json
import os
import pathlib
import subprocess
import threading
from typing import Any

import pytest

from finetune_trainer.pod import log_tail
from unit.trainer.test_launch import config

Capture = pytest.CaptureFixture[str]


def run(directory: pathlib.Path, repeats: int = 1, **changes: Any) -> None:
    """Write a line, and have a child write others, with an output directory."""
    with log_tail.keep_log(config().model_copy(update={"output": str(directory / "output"), **changes}), 1):
        os.write(1, b"from the launcher\n")
        subprocess.run(["/bin/sh", "-c", f"yes from a worker | head -n {repeats} >&2"], check=True)


def kept(directory: pathlib.Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (directory / "output").glob("logs/*")}


def test_what_launcher_and_workers_write_is_kept_and_still_in_the_log_of_the_pod(tmp_path: pathlib.Path, capfd: Capture) -> None:
    run(tmp_path, attempt=2)
    os.write(1, b"after the end\n")
    text = "from the launcher\nfrom a worker\n"
    assert kept(tmp_path) == {"news-2-1.log": text}
    assert capfd.readouterr() == ("after the end\n", text)


def test_only_the_end_of_a_long_log_is_kept_and_it_begins_with_a_whole_line(tmp_path: pathlib.Path, capfd: Capture) -> None:
    run(tmp_path, 60_000)
    [text] = kept(tmp_path).values()
    assert log_tail.TAIL_BYTES * 0.9 < len(text) <= log_tail.TAIL_BYTES
    assert set(text.splitlines()) == {"from a worker"}
    assert capfd.readouterr().err.count("from a worker") == 60_000


@pytest.mark.parametrize("content", ['{"name": "other", "digest": "of another training"}', "no json"])
def test_nothing_is_written_to_the_directory_of_another_training(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "run.json").write_text(content)
    run(tmp_path)
    assert kept(tmp_path) == {}


def test_nothing_is_written_to_the_unfinished_training_of_an_earlier_job(tmp_path: pathlib.Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "run.json").write_text(json.dumps({"name": "news", "uid": "earlier"}))
    run(tmp_path, adopted=True, job_uid="later")
    assert kept(tmp_path) == {}


def test_the_logs_of_the_last_ten_attempts_are_kept(tmp_path: pathlib.Path) -> None:
    for attempt in (1, 2, 11):
        run(tmp_path, attempt=attempt)
    assert sorted(name.split("-")[-2] for name in kept(tmp_path)) == ["11", "2"]


def test_the_log_is_saved_while_the_pod_runs_and_only_if_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tail, saved = log_tail._Tail(), list[bytes]()

    class Waits(threading.Event):
        """The pause: the first ends with more in the log, the second without, the third because of the end."""

        number = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.number += 1
            if self.number != 2:
                tail.add(b"line %d\n" % self.number)
            return self.number == 3

    log_tail._save_repeatedly(tail, saved.append, Waits())
    assert saved == [b"line 1\n", b"line 1\nline 3\n"]


def test_a_full_volume_ends_nothing() -> None:
    tail, stop = log_tail._Tail(), threading.Event()
    tail.add(b"line\n")
    stop.set()

    def save(content: bytes) -> None:
        raise OSError(28, "No space left on device")

    log_tail._save_repeatedly(tail, save, stop)
