"""`kubectl finetune watch`: a live view on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.files import printable
from finetune_client.chart import draw_curve
from finetune_client.follow import Sighting
from finetune_client.records import EventRecord, JobRecord
from finetune_client.texts import format_event, format_figures, format_metrics, format_restarts, format_state, true_problems

_EVENTS = 6
_CHART_LINES = 8
_WIDEST_CHART = 100
_COLOURS = {"Succeeded": "green", "Failed": "red", "Restarting": "yellow", "Running": "cyan", "Publishing": "cyan"}

# Reads (step, loss) of the time before.
Past = Callable[[], list[tuple[int, float]]]


def show(sightings: Iterable[Sighting], console: Console, past: Past) -> JobRecord:
    """Show a job until it has ended; its last record. past: what is known of the loss before; asked for on a terminal only."""
    job = _show_live(sightings, console, past) if console.is_terminal else _show_lines(sightings, console)
    console.print(_end(job), soft_wrap=True)
    return job


def _show_live(sightings: Iterable[Sighting], console: Console, past: Past) -> JobRecord:
    view = View(past)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for sighting in sightings:
            view.take(sighting)
            live.update(view.build(console.width), refresh=True)
    assert view.job is not None, "sightings end with the end of a job"
    return view.job


class View:
    """All that was seen of a job, and how it is shown on a terminal."""

    def __init__(self, past: Past) -> None:
        self.job: JobRecord | None = None
        self.losses: dict[int, float] = {}
        self._past: Past | None = past
        self._events: list[EventRecord] = []
        self._problem: str | None = None

    def take(self, sighting: Sighting) -> None:
        """Add what was seen at one look."""
        self.job, self._problem = sighting.job or self.job, sighting.problem
        self._events = [*self._events, *sighting.events][-_EVENTS:]
        progress = self.job.status.progress if self.job is not None else None
        if progress is None or progress.loss is None:
            return
        if self._past is not None:
            self.losses.update(self._past())
            self._past = None
        # After a restart steps are done again: what was seen beyond them counts no more.
        self.losses = {step: loss for step, loss in self.losses.items() if step < progress.step} | {progress.step: progress.loss}

    def build(self, width: int) -> RenderableType:
        """The screen."""
        parts: list[RenderableType] = []
        if self.job is not None:
            parts += self._of_job(self.job, width)
        parts += [Text(format_event(event), style="dim" if event.type == "Normal" else "yellow") for event in self._events]
        if self._problem is not None:
            parts.append(Text(f"{printable(self._problem)}; trying again", style="bold yellow"))
        return Group(*parts)

    def _of_job(self, job: JobRecord, width: int) -> list[RenderableType]:
        status = job.status
        head = Text.assemble((f"{job.name}  ", "bold"), (format_state(job), _COLOURS.get(job.phase, "")))
        parts: list[RenderableType] = [head]
        if status.progress is not None:
            bar = Table.grid(padding=(0, 2))
            bar.add_row(
                ProgressBar(total=status.progress.total_steps or None, completed=status.progress.step, width=min(40, width // 3)),
                Text(format_figures(status.progress)),
            )
            parts.append(bar)
        curve = draw_curve(sorted(self.losses.items()), min(width - 1, _WIDEST_CHART), _CHART_LINES)
        parts += [Text(line, style="cyan", no_wrap=True) for line in curve]
        if status.evaluation is not None:
            parts.append(Text(f"evaluation after step {status.evaluation.step}: {format_metrics(status.evaluation.metrics)}"))
        if restarts := format_restarts(status):
            parts.append(Text(f"attempt {status.attempt}; restarts: {restarts}"))
        return parts + [Text(problem, style="yellow") for problem in true_problems(status)]


def _show_lines(sightings: Iterable[Sighting], console: Console) -> JobRecord:
    """A line for each thing that is new: phase, logged step, evaluation, trouble, event."""
    told: dict[str, str] = {}
    job: JobRecord | None = None
    for sighting in sightings:
        for event in sighting.events:
            console.print(f"event: {format_event(event)}", markup=False, soft_wrap=True)
        if sighting.problem is not None:
            news = {"problem": f"{printable(sighting.problem)}; trying again"}
        else:
            told.pop("problem", None)
            job = sighting.job
            news = _news(job) if job is not None else {}
        for kind, line in news.items():
            if line and told.get(kind) != line:
                console.print(line, markup=False, soft_wrap=True)
        told |= news
    assert job is not None, "sightings end with the end of a job"
    return job


def _news(job: JobRecord) -> dict[str, str]:
    status = job.status
    lines = {"state": "" if job.finished else format_state(job), "trouble": "; ".join(true_problems(status))}
    if status.progress is not None and status.phase == "Running":
        lines["progress"] = format_figures(status.progress)
    if status.evaluation is not None:
        lines["evaluation"] = f"evaluation after step {status.evaluation.step}: {format_metrics(status.evaluation.metrics)}"
    if restarts := format_restarts(status):
        lines["restarts"] = f"attempt {status.attempt}; restarts: {restarts}"
    return lines


def _end(job: JobRecord) -> Text:
    """How it ended, and which command is the next."""
    status = job.status
    lines = [Text(format_state(job), style=f"bold {_COLOURS.get(job.phase, '')}")]
    if status.phase == "Succeeded":
        if status.published is not None:
            lines.append(Text(printable(f"published: {status.published.url}")))
        lines.append(Text(f"  kubectl finetune pull {job.name} ./{job.name}{job.place}"))
    else:
        if status.failure is not None and status.failure.hint:
            lines.append(Text(printable(status.failure.hint)))
        lines.append(Text(f"  kubectl finetune why {job.name}{job.place}"))
    return Text("\n").join(lines)
