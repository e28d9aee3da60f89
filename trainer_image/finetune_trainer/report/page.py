"""Renders the record of a training as an HTML page."""

import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from finetune_api import __version__
from finetune_api.durations import format_duration
from finetune_api.reasons import FineTuneError
from finetune_api.resource import parse_spec
from finetune_api.status import SampleAnswer, describe_tags
from finetune_trainer.report import NAME
from finetune_trainer.report.charts import Series, line_chart
from finetune_trainer.report.read import Entry, Training, read_training

log = logging.getLogger(__name__)

_MAX_CLASSES = 24
_MAX_CONFUSIONS = 20
_MAX_ROWS = 200
_MAX_DOTTED_POINTS = 60
_NOT_SHOWN = "(not shown)"


def render(training: Training) -> str:
    """Return the whole page. Class names, samples and all other text from users or data is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("finetune_trainer.report", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = format_number
    return environment.get_template(
        "page.html.j2"
    ).render(
        training=training,
        state=_state(training),
        findings=(training.report and training.report.findings) or (),
        tiles=_tiles(training),
        best=training.report.best if training.report else None,
        charts=[(title, Markup(svg)) for title, svg in _charts(training)],  # noqa: S704 - our own SVG, with escaped texts
        confusion=_confusion(training.evaluation),
        per_class=_per_class(training.evaluation),
        samples=[(sample, format_answer(sample)) for sample in (training.report and training.report.samples) or ()],
        configuration=_configuration(training.spec),
        resolved=list(_resolved(training)),
        starts=training.starts[-_MAX_ROWS:],
        data=[str(line) for line in training.starts[-1].get("data") or ()] if training.starts else [],
        versions=(training.starts[-1].get("versions") or {}) if training.starts else {},
        generator=__version__,
    )


def write_at_end(directory: pathlib.Path) -> None:
    """Write the page of a finished training. Never raise an error: a failed report must not fail the job."""
    try:
        write(read_training(directory), directory / NAME)
    except Exception as error:
        log.warning("%s could not be written (%s: %s)", directory / NAME, type(error).__name__, error)


def write(training: Training, path: pathlib.Path) -> None:
    """Write the page atomically. Raise OSError."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(render(training))
    temporary.replace(path)


def format_number(value: Any) -> str:
    """Format a number with about four digits. Return a dash for anything else."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 1e-3 or abs(value) >= 1000 else f"{value:.4f}".rstrip("0").rstrip(".")


def _state(training: Training) -> tuple[str, str]:
    """Return the state as a word, and a sentence about it."""
    last, total = training.last_step, training.total_steps
    if training.report is not None:
        early = training.report.stopped_early
        return "Finished", early or f"{training.report.step} steps"
    when = max((str(entry.get("time", "")) for entry in (*training.steps, *training.evaluations)), default="")
    done = f"step {last}" + (f" of {total}" if total else "")
    if not when:
        return "Not finished", "it has not made a step yet"
    return "Not finished", f"the last record is {done}, at {when}: the training is running, or was interrupted there"


def _tiles(training: Training) -> list[tuple[str, str, str]]:
    """Return the tiles at the top: name, value, and the value of the constant answer or nothing.

    The metrics are of the finished model, else of the newest evaluation.
    """
    metrics = training.evaluation.get("metrics") or (training.evaluations[-1]["evaluation"] if training.evaluations else {})
    baseline = training.evaluation.get("baseline") or {}
    tiles = [
        (
            "held-out loss" if name == "loss" else name,
            format_number(value),
            format_number(baseline[name]) if name in baseline else "",
        )
        for name, value in metrics.items()
    ][:6]
    if training.steps:
        tiles.append(("training loss", format_number(training.steps[-1].get("loss")), ""))
        tiles.append(("epochs", format_number(round(float(training.steps[-1].get("epoch") or 0), 2)), ""))
    if seconds := _seconds(training.steps):
        tiles.append(("time in training steps", format_duration(seconds), ""))
    if training.starts:
        tiles.append(("restarts", str(len(training.starts) - 1), ""))
    return tiles


def _seconds(steps: Sequence[Entry]) -> float:
    """Return the duration of the steps that led to the model. Steps that were lost and repeated count once."""
    total, last = 0.0, 0
    for entry in steps:
        total += float(entry.get("stepSeconds") or 0) * (entry["step"] - last)
        last = entry["step"]
    return total


def _series(entries: Sequence[Entry], name: str) -> Series:
    found = [(entry["step"], entry.get(name)) for entry in entries]
    return [(step, float(value)) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]


def _charts(training: Training) -> list[tuple[str, str]]:
    best = training.report.best.step if training.report and training.report.best else None
    restarts = [start["fromStep"] for start in training.starts[1:] if isinstance(start.get("fromStep"), int)]
    evaluations = [{"step": entry["step"], **entry["evaluation"]} for entry in training.evaluations]
    names = list(dict.fromkeys(name for entry in evaluations for name in entry if name not in ("step", "loss")))
    shares = [name for name in names if all(0 <= value <= 1 for _, value in _series(evaluations, name))]
    wanted: list[tuple[str, dict[str, Series]]] = [
        ("Loss", {"training": _series(training.steps, "loss"), "held-out data": _series(evaluations, "loss")}),
        ("Evaluation", {name: _series(evaluations, name) for name in shares[:6]}),
        *((name, {name: _series(evaluations, name)}) for name in names if name not in shares),
        ("Learning rate", {"learning rate": _series(training.steps, "learningRate")}),
        ("Gradient norm", {"gradient norm": _series(training.steps, "gradientNorm")}),
        ("Samples a second", {"samples a second": _series(training.steps, "samplesPerSecond")}),
        ("Tokens a second", {"tokens a second": _series(training.steps, "tokensPerSecond")}),
    ]
    drawn = []
    for title, series in wanted:
        there = {name: points for name, points in series.items() if points}
        if there:
            dotted = [
                name
                for name, points in there.items()
                if len(points) < _MAX_DOTTED_POINTS and (name in names or name == "held-out data")
            ]
            drawn.append((title, line_chart(title, there, restarts, dotted, noisy=title != "Learning rate", best=best)))
    return drawn


def _confusion(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the matrix, with each cell's share of its row. For many classes, return the most frequent confusions."""
    classes, counts = evaluation.get("classes") or [], evaluation.get("confusion") or []
    if not classes or len(counts) != len(classes):
        return None
    if len(classes) > _MAX_CLASSES:
        pairs = [
            (counts[true][guess], classes[true], classes[guess])
            for true in range(len(classes))
            for guess in range(len(classes))
            if true != guess and counts[true][guess]
        ]
        return {"pairs": sorted(pairs, key=lambda pair: -pair[0])[:_MAX_CONFUSIONS]}
    rows = [
        (name, [(count, count / max(1, sum(row)), index == own) for index, count in enumerate(row)])
        for own, (name, row) in enumerate(zip(classes, counts, strict=True))
    ]
    return {"classes": classes, "rows": rows}


def _per_class(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    metrics: Mapping[str, Mapping[str, float]] = evaluation.get("perClass") or {}
    if not metrics:
        return None
    names = list(next(iter(metrics.values())))
    rows = [(kind, [row.get(name) for name in names]) for kind, row in metrics.items()]
    return {"names": names, "rows": rows[:_MAX_ROWS], "left_out": max(0, len(rows) - _MAX_ROWS)}


def _configuration(spec: Mapping[str, Any]) -> str:
    """Return the spec as YAML, without default values; unchanged if this version can't parse it."""
    wire = json.loads(json.dumps(spec))
    for variable in wire.get("pod", {}).get("env") or ():
        if "valueFrom" not in variable:
            variable["value"] = _NOT_SHOWN
    try:
        shown = parse_spec(wire).model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    except FineTuneError:
        shown = wire
    return yaml.safe_dump(_without_empty_blocks(shown), sort_keys=False, allow_unicode=True, width=100) if shown else ""


def _without_empty_blocks(value: Any) -> Any:
    """Remove empty blocks."""
    if isinstance(value, dict):
        return {name: kept for name, item in value.items() if (kept := _without_empty_blocks(item)) not in ({}, [])}
    return [_without_empty_blocks(item) for item in value] if isinstance(value, list) else value


def _resolved(training: Training) -> Sequence[tuple[str, str]]:
    known = dict(training.resolved)
    if training.report is not None and training.report.resolved is not None:
        known |= training.report.resolved.to_wire()
    texts = {
        name: ", ".join(map(str, filter(None, value))) if isinstance(value, list) else str(value) for name, value in known.items()
    }
    return [(name, text) for name, text in texts.items() if text]


def format_answer(sample: SampleAnswer) -> str:
    """Return the model's answer as one line."""
    if sample.guesses is not None:
        return ", ".join(f"{guess.token.strip()} ({guess.score:.2f})" for guess in sample.guesses)
    if sample.entities is not None:
        return ", ".join(f"{entity.text} ({entity.label})" for entity in sample.entities) or "nothing found"
    if sample.answer is not None:
        return sample.answer
    if sample.labels is not None:
        return describe_tags(sample.labels, digits=3)
    score = f"{sample.score:.3f}" if sample.score is not None else ""
    return f"{sample.label} ({score})" if sample.label is not None else score
