"""Output on the terminal: texts of users are shown as they are and never interpreted as markup."""

import io
import json
import pathlib

from rich.console import Console

from finetune_api.status import Finding, SampleAnswer
from finetune_api.wire import Report
from finetune_trainer.commands.console import ProgressView, print_error, show_result
from finetune_trainer.output.directory import OutputDirectory
from unit.trainer.tiny_models import build_spec


def test_brackets_in_class_names_and_samples_are_shown_as_they_are(tmp_path: pathlib.Path) -> None:
    output = OutputDirectory(tmp_path)
    evaluation = {"metrics": {"accuracy": 0.5}, "classes": ["[/red]", "[b]"], "confusion": [[1, 0], [2, 3]]}
    output.evaluation.write_text(json.dumps(evaluation))
    answer = SampleAnswer(text="see [/i] and [link]", label="[b]", score=0.9)
    stream = io.StringIO()
    show_result(
        Console(file=stream, width=120),
        Report(attempt=1, phase="Succeeded", samples=[answer]),
        output,
        build_spec("text-classification"),
    )
    for text in ("[/red]", "[b] 0.90  see [/i] and [link]", "accuracy 0.5000"):
        assert text in stream.getvalue()


def test_an_error_is_shown_with_the_brackets_of_its_field() -> None:
    stream = io.StringIO()
    print_error(
        Console(file=stream, width=300), "spec.datasets[0].columns.text: no column 'a'; write one of: [b], [/c]", "[hint]"
    )
    assert stream.getvalue() == "error: spec.datasets[0].columns.text: no column 'a'; write one of: [b], [/c]\n[hint]\n"


def test_without_a_terminal_each_stage_and_each_logged_step_is_one_plain_line() -> None:
    stream = io.StringIO()
    report = Report(attempt=1, phase="Running", step=3, total_steps=4, loss=0.5, samples_per_second=10.0, remaining_seconds=70)
    with ProgressView(Console(file=stream, width=80)) as progress:
        progress.show(Report(attempt=1, phase="Initializing", message="loading the model"))
        progress.show(report)
        progress.show(report)
        progress.show(report.model_copy(update={"step": 4, "samples_per_second": 9.9, "remaining_seconds": 60}))
    assert stream.getvalue() == (
        "Initializing: loading the model\nRunning: step 3/4 (75%)  loss 0.5000  10.0 samples/s  1m10s left\n"
    )


def test_the_result_has_the_constant_answer_and_the_findings(tmp_path: pathlib.Path) -> None:
    output = OutputDirectory(tmp_path)
    output.evaluation.write_text(json.dumps({"metrics": {"accuracy": 0.5}, "baseline": {"accuracy": 0.25}}))
    report = Report(attempt=1, phase="Succeeded", findings=[Finding(type="RareClass", message="[b] has 1")])
    stream = io.StringIO()
    show_result(Console(file=stream, width=80), report, output, build_spec("text-classification"))
    assert "Held-out data: accuracy 0.5000\nConstant answer: accuracy 0.2500\n" in stream.getvalue()
    assert "\nFindings\n  RareClass: [b] has 1\n" in stream.getvalue()
