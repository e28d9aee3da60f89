"""Output of `finetune run`: a progress bar on a terminal, plain lines elsewhere, and the result at the end."""

import json
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from finetune_api.durations import format_duration
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Finding, SampleAnswer, describe_tags
from finetune_api.try_command import predict_command
from finetune_api.wire import Report
from finetune_trainer.output.directory import OutputDirectory


class ProgressView:
    """Shows reports: as a progress bar on a terminal, otherwise as one line per logged step, without carriage returns."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[progress]}", markup=False),
            console=console,
            transient=False,
        )
        self._task: TaskID | None = None
        self._last_shown: tuple[object, ...] = ()

    def __enter__(self) -> "ProgressView":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def show(self, report: Report) -> None:
        """Show a report. Called several times per second."""
        if report.phase in ("Succeeded", "Failed", "Interrupted"):
            return  # show_result() and print_error() show the outcome
        description = report.message or report.phase
        if not self._console.is_terminal:
            running = report.phase == "Running" and not report.message
            # Step, throughput and remaining time change in each report. Loss and learning rate change only when a step is logged.
            shown = (report.phase, report.message, *((report.loss, report.learning_rate) if running else ()))
            if shown != self._last_shown:
                self._console.print(
                    f"{report.phase}: {format_progress(report) if running else description}", markup=False, soft_wrap=True
                )
                self._last_shown = shown
            return
        if self._task is None:
            self._task = self._progress.add_task(description, progress="")
        self._progress.update(
            self._task,
            description=description,
            total=report.total_steps,
            completed=report.step,
            progress=format_progress(report),
        )


def format_progress(report: Report) -> str:
    """Return one line: step, percent, loss, throughput, remaining time."""
    if not report.total_steps or report.phase == "Initializing":
        return ""
    parts = [f"step {report.step}/{report.total_steps} ({100 * report.step // report.total_steps}%)"]
    if report.loss is not None:
        parts.append(f"loss {report.loss:.4f}")
    if report.samples_per_second is not None:
        parts.append(f"{report.samples_per_second:.1f} samples/s")
    if report.remaining_seconds is not None:
        parts.append(f"{format_duration(report.remaining_seconds)} left")
    return "  ".join(parts)


def show_result(console: Console, report: Report, output: OutputDirectory, spec: FineTuneJobSpec) -> None:
    """Print metrics, confusion matrix, answers to the samples, the path of the model, and the command that tries it."""
    evaluation = json.loads(output.evaluation.read_text())
    console.print()
    for title, key in (("Held-out data:", "metrics"), ("Constant answer:", "baseline")):
        if metrics := "   ".join(f"{name} {value:.4f}" for name, value in evaluation.get(key, {}).items()):
            console.print(f"[bold]{title}[/bold] {metrics}", soft_wrap=True)
    if "confusion" in evaluation:
        console.print(_confusion(evaluation["classes"], evaluation["confusion"]))
    if report.stopped_early:
        console.print(f"The training {report.stopped_early}.", highlight=False, soft_wrap=True)
    for sample in report.samples or []:
        text = sample.text if len(sample.text) <= 90 else sample.text[:89] + "…"
        console.print(f"{_answer(sample)}  {escape(' '.join(text.split()))}", highlight=False, soft_wrap=True)
    print_findings(console, report.findings or ())
    if report.published:
        console.print(f"Published: {report.published.url} (commit {report.published.commit[:12]})")
    console.print(f"\nThe model: {output.model}", markup=False, soft_wrap=True)
    console.print(f"  {predict_command(str(output.directory), spec)}", markup=False, soft_wrap=True)


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print the findings about a training or its data, the worst first."""
    for number, finding in enumerate(findings):
        if number == 0:
            console.print("\n[bold yellow]Findings[/bold yellow]")
        console.print(f"  [bold]{escape(finding.type)}[/bold]: {escape(finding.message)}", soft_wrap=True)


def _confusion(classes: list[str], confusion: list[list[int]]) -> Table:
    table = Table(title="true class ↓  predicted →", title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column()
    for name in classes:
        table.add_column(escape(name), justify="right")
    for name, row in zip(classes, confusion, strict=True):
        table.add_row(escape(name), *(str(count) if count else "·" for count in row))
    return table


def _answer(sample: SampleAnswer) -> str:
    """Return the model's answer to a sample, for any task."""
    if sample.guesses is not None:
        return _bold(", ".join(f"{guess.token.strip()} {guess.score:.2f}" for guess in sample.guesses))
    if sample.entities is not None:
        return _bold(", ".join(f"{entity.text} ({entity.label})" for entity in sample.entities) or "nothing found")
    if sample.answer is not None:
        return _bold(" ".join(sample.answer.split()))
    if sample.labels is not None:
        return _bold(describe_tags(sample.labels, digits=2))
    score = f"{sample.score:.2f}" if sample.score is not None else ""
    return _bold(score) if sample.label is None else f"{_bold(sample.label)} {score}".rstrip()


def _bold(text: str) -> str:
    return f"[bold]{escape(text)}[/bold]"


def tail(path: pathlib.Path, lines: int = 20) -> str:
    """Return the last lines of a log file."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def print_error(console: Console, message: str, hint: str | None = None) -> None:
    """Print an error on standard error, and what to do."""
    error = Console(stderr=True, highlight=False, soft_wrap=True) if console.file is sys.stdout else console
    error.print(f"[bold red]error:[/bold red] {escape(message)}")
    if hint:
        error.print(hint, markup=False)
