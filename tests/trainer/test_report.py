"""`finetune report`: one page that a browser opens without a network, for any data and at any stage of a training."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from finetune_api import names
from finetune_api.resource import parse_spec
from finetune_trainer.report.command import report
from finetune_trainer.report.page import render
from finetune_trainer.report.read import read_training
from trainer.runner import Runner

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>&\"'"
SPEC = {
    "task": "text-classification",
    "model": {"hub": {"name": "google-bert/bert-base-uncased"}},
    "datasets": [{"claim": {"claimName": "data"}}],
    "training": {"maxSteps": 200},
    "samples": [{"text": HOSTILE}],
}
START = {"time": "2026-01-01T00:00:00Z", "nodes": 2, "processes": 4, "device": "GPU", "versions": {"torch": "2.13.0"}}


def write_output(directory: pathlib.Path, steps: int = 200, finished: bool = True, classes: int = 3) -> pathlib.Path:
    """Write the output of a training that was restarted once, at step 50."""
    directory.mkdir()
    (directory / "run.json").write_text(
        json.dumps({"name": "news", "digest": "x", "resolved": {"modelRevision": "c0ffee"}, "spec": parse_spec(SPEC).to_wire()})
    )
    starts = [START | {"attempt": attempt, "fromStep": step, "totalSteps": 200} for attempt, step in ((1, 0), (2, 50))]
    (directory / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        values = {"loss": 1 / step, "learningRate": 1e-4, "gradientNorm": 1.0, "stepSeconds": 0.5, "samplesPerSecond": 64.0}
        lines.append({"step": step, "epoch": step / 100, **values, "time": "2026-01-01T00:01:00Z", "attempt": 1})
        if step % 50 == 0:
            lines.append({"step": step, "evaluation": {"loss": 0.5, "accuracy": 0.9}, "time": "2026-01-01T00:01:00Z"})
    history = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "history.jsonl").write_text(history + '{"step": 201, "lo')  # a line that is being written
    if finished:
        named = [HOSTILE, *(f"class {number}" for number in range(1, classes))]
        matrix = [[10 if row == column else row for column in range(classes)] for row in range(classes)]
        per_class = {name: {"precision": 0.5, "recall": 0.25, "support": 4} for name in named}
        evaluation = {
            "step": 200,
            "metrics": {"loss": 0.5, "accuracy": 0.987},
            "baseline": {"accuracy": 0.333},
            "classes": named,
            "confusion": matrix,
        }
        (directory / "evaluation.json").write_text(json.dumps(evaluation | {"perClass": per_class}))
        samples = [{"text": HOSTILE, "label": HOSTILE, "score": 0.75}]
        findings = [{"type": "RareClass", "message": HOSTILE}]
        last = {"attempt": 2, "phase": "Succeeded", "step": 200, "samples": samples, "findings": findings}
        (directory / "report.json").write_text(json.dumps(last))
        (directory / "model").mkdir()
    return directory


def test_the_page_is_complete_and_loads_nothing_from_elsewhere(tmp_path: pathlib.Path) -> None:
    page = render(read_training(write_output(tmp_path / "out")))
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Loss", "Evaluation", "Learning rate", "Gradient norm", "Samples a second"]
    assert page.count("<svg") == 5
    for shown in (
        "Finished",
        "200 steps",
        "0.987",
        "c0ffee",
        "google-bert/bert-base-uncased",
        "2.13.0",
        "maxSteps: 200",
        "class 2",
        "<b>RareClass</b>",
        "accuracy (constant answer: 0.333)",
    ):
        assert shown in page
    assert "1m40s" in page, "200 steps of half a second"
    # A browser does not request the addresses of XML namespaces.
    rest = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert "://" not in rest
    assert not re.findall(r"<(?:script|link(?! rel=\"icon\" href=\"data:)|iframe|object)|@import|url\((?!#)", rest)


def test_the_page_says_why_the_training_stopped_early_and_marks_the_best_step(tmp_path: pathlib.Path) -> None:
    output = write_output(tmp_path / "out")
    report = json.loads((output / "report.json").read_text())
    report |= {"best": {"step": 150, "metrics": {"accuracy": 0.99}}, "stoppedEarly": "stopped early after step 200 of 400"}
    (output / "report.json").write_text(json.dumps(report))
    page, without = render(read_training(output)), render(read_training(write_output(tmp_path / "other")))
    assert "stopped early after step 200 of 400" in page
    assert "The solid line marks step 150, whose model was the best one." in page
    assert page.count("<path") == without.count("<path") + page.count("<svg"), "one line more in each chart"


def test_the_page_says_for_what_the_labels_were_taken(tmp_path: pathlib.Path) -> None:
    output = write_output(tmp_path / "out")
    line = {"fromStep": 0, "data": [f"2 classes in column 'label': {HOSTILE} 3, b 4"]}
    (output / "starts.jsonl").write_text(json.dumps(START | line) + "\n")
    assert "<h2>Data</h2>" in (page := render(read_training(output)))
    assert "2 classes in column &#39;label&#39;: " in page
    assert HOSTILE not in page


def test_hostile_names_and_samples_are_shown_as_text(tmp_path: pathlib.Path) -> None:
    page = render(read_training(write_output(tmp_path / "out")))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 4, "the class in both tables, the sample, and the configuration"


def test_with_many_classes_the_page_shows_those_that_are_confused_most(tmp_path: pathlib.Path) -> None:
    page = render(read_training(write_output(tmp_path / "out", classes=40)))
    assert '<table class="matrix">' not in page
    assert re.search(r'<td class="n">39</td><td>class 39</td>', page)


def test_a_training_that_was_interrupted_has_a_page_that_says_so(tmp_path: pathlib.Path) -> None:
    output = write_output(tmp_path / "out", steps=73, finished=False)
    done = CliRunner().invoke(report, [str(output)])
    assert done.exit_code == 0, done.output
    page = (output / "report.html").read_text()
    assert "Not finished" in page
    assert "the last record is step 73 of 200, at 2026-01-01T00:01:00Z" in page
    assert not (output / ".report.html.new").exists()


def test_a_training_that_has_not_made_a_step_yet_has_a_page(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "run.json").write_text(json.dumps({"name": "news", "digest": "x"}))
    assert "it has not made a step yet" in render(read_training(output))


def test_the_directory_of_a_finished_model_is_accepted(tmp_path: pathlib.Path) -> None:
    output, page = write_output(tmp_path / "out"), tmp_path / "page.html"
    done = CliRunner().invoke(report, [str(output / "model"), "--output", str(page)])
    assert done.exit_code == 0, done.output
    assert page.is_file()


def test_a_directory_without_a_training_and_a_job_s_name_get_one_sentence(tmp_path: pathlib.Path) -> None:
    empty = CliRunner().invoke(report, [str(tmp_path)])
    assert empty.exit_code == names.EXIT_REFUSED
    assert "holds no training; write the output directory of a job" in empty.output
    named = CliRunner().invoke(report, ["news"])
    assert named.exit_code == names.EXIT_REFUSED
    assert "kubectl finetune pull news DIR" in named.output


def browse(page: pathlib.Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Open a page in headless Chromium, which can't resolve any host name."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    return subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
            "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_chromium_opens_the_page_without_network_and_without_an_error(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(read_training(write_output(tmp_path / "out"))))
    opened = browse(page, "--dump-dom")
    assert opened.returncode == 0, opened.stderr
    assert "CONSOLE" not in opened.stderr
    assert "<title>news: training report</title>" in opened.stdout
    assert opened.stdout.count("<svg") == 5

    browse(page, f"--screenshot={tmp_path / 'light.png'}", "--window-size=1200,1600")
    browse(page, f"--screenshot={tmp_path / 'dark.png'}", "--window-size=1200,1600", "--blink-settings=preferredColorScheme=0")
    light, dark = mean_and_colours(tmp_path / "light.png"), mean_and_colours(tmp_path / "dark.png")
    assert light[0] > 200 > 80 > dark[0], "the page is light in light mode and dark in dark mode"
    assert min(light[1], dark[1]) > 50, "something is drawn"


def mean_and_colours(path: pathlib.Path) -> tuple[float, int]:
    """Return the mean brightness, 0 to 255, and the number of colours."""
    from PIL import Image, ImageStat

    with Image.open(path) as image:
        return ImageStat.Stat(image.convert("L")).mean[0], len(image.convert("RGB").getcolors(1 << 24) or ())


def test_an_error_in_the_console_of_the_browser_is_detected(tmp_path: pathlib.Path) -> None:
    """This shows that the test above can fail."""
    page = tmp_path / "page.html"
    page.write_text("<title>x</title><script>console.error('broken')</script>")
    assert "CONSOLE" in browse(page, "--dump-dom").stderr


def test_a_training_writes_its_page_at_the_end(make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    runner = make_runner()
    assert runner.run(runner.job(samples=[{"text": "The striker scored."}])).returncode == 0
    output = runner.directory / "out"
    page = (output / "report.html").read_text()
    for shown in ("Finished", "Tokens a second", "The striker scored.", "entertainment", "transformers"):
        assert shown in page
    [start] = [json.loads(line) for line in (output / "starts.jsonl").read_text().splitlines()]
    assert (start["attempt"], start["fromStep"], start["processes"]) == (1, 0, 1)
    for line in runner.history():
        assert line["attempt"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])
        if "loss" in line:
            assert line["samplesPerSecond"] == pytest.approx(8 / line["stepSeconds"], rel=0.01)
            assert line["tokensPerSecond"] > line["samplesPerSecond"]
