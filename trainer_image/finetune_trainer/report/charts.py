"""Draws charts as inline SVG. Text stays text, and colours are variables of the page, so that they fit light and dark mode."""

import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Series = Sequence[tuple[float, float]]

_MAX_POINTS = 800
_MIN_POINTS_TO_SMOOTH = 60
_WINDOW_SHARE = 0.04
# Unique colours that are replaced by variables of the page.
_INK, _FAINT = "#010203", "#020304"
_LINES = ("#030405", "#040506", "#050607", "#060708", "#070809", "#08090a")
_VARIABLES = {_INK: "--ink", _FAINT: "--faint"} | {colour: f"--line-{number}" for number, colour in enumerate(_LINES)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.alpha": 0.5,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": False,
}


def line_chart(
    title: str,
    series: Mapping[str, Series],
    restarts: Iterable[int],
    dots: Collection[str] = (),
    noisy: bool = True,
    best: int | None = None,
) -> str:
    """Return an <svg>. series: name → (step, value) in order of steps. restarts: steps to mark. dots: series with markers.

    noisy: whether to draw the mean over a window on top of a series with many points. best: step of the best model, to mark.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 3.1), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for (name, points), colour in zip(series.items(), _LINES, strict=False):
            _draw(axes, name, points, colour, name in dots, noisy and len(points) >= _MIN_POINTS_TO_SMOOTH)
        for step in restarts:
            axes.axvline(step, color=_FAINT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
        if best is not None:
            axes.axvline(best, color=_FAINT, linewidth=2.4, zorder=0)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        if len(series) > 1:
            axes.legend(loc="best", fontsize=10)
        target = io.StringIO()
        # Uses the backend and not pyplot, which has windows and global state.
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None, "Title": title})
    return _for_page(target.getvalue())


def _draw(axes: Axes, name: str, points: Series, colour: str, dotted: bool, noisy: bool) -> None:
    if dotted:
        axes.plot(*_columns(points), color=colour, marker="o", markersize=4.5, linewidth=1.6, label=name, zorder=3)
    elif not noisy:
        axes.plot(*_columns(downsample(points)), color=colour, linewidth=1.6, label=name)
    else:
        axes.plot(*_columns(downsample(points)), color=colour, linewidth=0.9, alpha=0.35)
        axes.plot(*_columns(downsample(smooth(points))), color=colour, linewidth=1.9, label=name)


def _columns(points: Series) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def smooth(points: Series) -> Series:
    """Return the mean over a window around each point. The window is narrower at both ends."""
    reach = max(2, round(len(points) * _WINDOW_SHARE))
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for index, (step, _) in enumerate(points):
        side = min(reach, index, len(points) - 1 - index)
        result.append((step, (sums[index + side + 1] - sums[index - side]) / (2 * side + 1)))
    return result


def downsample(points: Series) -> Series:
    """Reduce the points to at most _MAX_POINTS. Each new point is the mean of a group of neighbours."""
    size = -(-len(points) // _MAX_POINTS)
    if size < 2:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _for_page(svg: str) -> str:
    """Adapt an SVG file to the page: remove header and metadata, take the page's width, colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
