"""`kubectl finetune watch`: a live view on a terminal, otherwise plain lines."""

from collections.abc import Callable, Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.files import printable
from finetune_client.follow import JobUpdate
from finetune_client.formatting import (
    format_event,
    format_metrics,
    format_problems,
    format_progress,
    format_restarts,
    format_state,
)
from finetune_client.plot import draw_curve
from finetune_client.records import EventRecord, JobRecord

_EVENTS = 6
_PLOT_LINES = 8
_MAX_PLOT_WIDTH = 100
_COLOURS = {"Succeeded": "green", "Failed": "red", "Restarting": "yellow", "Running": "cyan", "Publishing": "cyan"}

# Returns the (step, loss) pairs from before the watch started.
ReadHistory = Callable[[], list[tuple[int, float]]]


def show(updates: Iterable[JobUpdate], console: Console, read_history: ReadHistory) -> JobRecord:
    """Show a job until it has ended, and return its last record. read_history: called on a terminal only."""
    job = _show_live(updates, console, read_history) if console.is_terminal else _show_lines(updates, console)
    console.print(_build_summary(job), soft_wrap=True)
    return job


def _show_live(updates: Iterable[JobUpdate], console: Console, read_history: ReadHistory) -> JobRecord:
    view = View(read_history)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for update in updates:
            view.add(update)
            live.update(view.build(console.width), refresh=True)
    assert view.job is not None, "the last update holds the finished job"
    return view.job


class View:
    """Holds the state of a job that the updates reported, and builds the screen from it."""

    def __init__(self, read_history: ReadHistory) -> None:
        self.job: JobRecord | None = None
        self.losses: dict[int, float] = {}
        self._read_history: ReadHistory | None = read_history
        self._events: list[EventRecord] = []
        self._problem: str | None = None

    def add(self, update: JobUpdate) -> None:
        """Add an update."""
        self.job, self._problem = update.job or self.job, update.problem
        self._events = [*self._events, *update.events][-_EVENTS:]
        progress = self.job.status.progress if self.job is not None else None
        if progress is None or progress.loss is None:
            return
        if self._read_history is not None:
            self.losses.update(self._read_history())
            self._read_history = None
        # A restart repeats steps, so the losses of later steps are no longer valid.
        self.losses = {step: loss for step, loss in self.losses.items() if step < progress.step} | {progress.step: progress.loss}

    def build(self, width: int) -> RenderableType:
        """Return the screen."""
        parts: list[RenderableType] = []
        if self.job is not None:
            parts += self._build_job(self.job, width)
        parts += [Text(format_event(event), style="dim" if event.type == "Normal" else "yellow") for event in self._events]
        if self._problem is not None:
            parts.append(Text(f"{printable(self._problem)}; trying again", style="bold yellow"))
        return Group(*parts)

    def _build_job(self, job: JobRecord, width: int) -> list[RenderableType]:
        status = job.status
        head = Text.assemble((f"{job.name}  ", "bold"), (format_state(job), _COLOURS.get(job.phase, "")))
        parts: list[RenderableType] = [head]
        if status.progress is not None:
            bar = Table.grid(padding=(0, 2))
            bar.add_row(
                ProgressBar(total=status.progress.total_steps or None, completed=status.progress.step, width=min(40, width // 3)),
                Text(format_progress(status.progress)),
            )
            parts.append(bar)
        curve = draw_curve(sorted(self.losses.items()), min(width - 1, _MAX_PLOT_WIDTH), _PLOT_LINES)
        parts += [Text(line, style="cyan", no_wrap=True) for line in curve]
        if status.evaluation is not None:
            parts.append(Text(f"evaluation after step {status.evaluation.step}: {format_metrics(status.evaluation.metrics)}"))
        if restarts := format_restarts(status):
            parts.append(Text(f"attempt {status.attempt}; restarts: {restarts}"))
        return parts + [Text(problem, style="yellow") for problem in format_problems(status)]


def _show_lines(updates: Iterable[JobUpdate], console: Console) -> JobRecord:
    """Print a line for each new event, and for each change of phase, progress, evaluation, restarts and problems."""
    printed: dict[str, str] = {}
    job: JobRecord | None = None
    for update in updates:
        for event in update.events:
            console.print(f"event: {format_event(event)}", markup=False, soft_wrap=True)
        if update.problem is not None:
            lines = {"problem": f"{printable(update.problem)}; trying again"}
        else:
            printed.pop("problem", None)
            job = update.job
            lines = _build_lines(job) if job is not None else {}
        for kind, line in lines.items():
            if line and printed.get(kind) != line:
                console.print(line, markup=False, soft_wrap=True)
        printed |= lines
    assert job is not None, "the last update holds the finished job"
    return job


def _build_lines(job: JobRecord) -> dict[str, str]:
    status = job.status
    lines = {"state": "" if job.finished else format_state(job), "problems": "; ".join(format_problems(status))}
    if status.progress is not None and status.phase == "Running":
        lines["progress"] = format_progress(status.progress)
    if status.evaluation is not None:
        lines["evaluation"] = f"evaluation after step {status.evaluation.step}: {format_metrics(status.evaluation.metrics)}"
    if restarts := format_restarts(status):
        lines["restarts"] = f"attempt {status.attempt}; restarts: {restarts}"
    return lines


def _build_summary(job: JobRecord) -> Text:
    """Return how the job ended, and the next command."""
    status = job.status
    lines = [Text(format_state(job), style=f"bold {_COLOURS.get(job.phase, '')}")]
    if status.phase == "Succeeded":
        if status.published is not None:
            lines.append(Text(printable(f"published: {status.published.url}")))
        lines.append(Text(f"  kubectl finetune pull {job.name} ./{job.name}{job.flags}"))
    else:
        if status.failure is not None and status.failure.hint:
            lines.append(Text(printable(status.failure.hint)))
        lines.append(Text(f"  kubectl finetune why {job.name}{job.flags}"))
    return Text("\n").join(lines)
