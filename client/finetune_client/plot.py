"""Draw a curve in a terminal. Each cell is a Braille character with eight dots, two across and four down."""

import math
from collections.abc import Sequence

_BRAILLE = 0x2800
# The bit of each dot of a cell, by column and by row from the top.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def draw_curve(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """Return the lines of a curve through points (x, y), with the largest and the smallest y as labels at the left.

    points: sorted by x; points whose y is not finite are left out. width, height: in cells, including the labels. Returns an
    empty list if there are fewer than two points.
    """
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return []
    low, high = min(y for _, y in points), max(y for _, y in points)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels))
    columns, rows = 2 * max(1, width - margin - 2), 4 * height
    heights = _interpolate(points, columns)
    scale = (rows - 1) / (high - low) if high > low else 0.0
    dots = [round((high - value) * scale) for value in heights]
    cells = [[0] * (columns // 2) for _ in range(height)]
    before = dots[0]
    for column, dot in enumerate(dots):
        # A steep part starts where the previous column ended, so that the curve has no gaps.
        first, last = (dot, dot) if dot == before else (before + 1, dot) if dot > before else (dot, before - 1)
        for row in range(first, last + 1):
            cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
        before = dot
    lines = ["".join(chr(_BRAILLE + bits) for bits in row) for row in cells]
    margins = [labels[0], *[""] * (height - 2), labels[1]] if height > 1 else [labels[0]]
    return [f"{label:>{margin}} ┤{line}" for label, line in zip(margins, lines, strict=True)]


def _interpolate(points: Sequence[tuple[float, float]], columns: int) -> list[float]:
    """Return y at each column: the mean of the points in it, or a linear interpolation between its neighbours."""
    first, last = points[0][0], points[-1][0]
    values_of: list[list[float]] = [[] for _ in range(columns)]
    for x, y in points:
        values_of[round((x - first) / (last - first) * (columns - 1))].append(y)
    known = [(column, sum(values) / len(values)) for column, values in enumerate(values_of) if values]
    heights = []
    position = 0
    for column in range(columns):
        while position < len(known) - 2 and known[position + 1][0] <= column:
            position += 1
        (left, start), (right, end) = known[position], known[position + 1]
        heights.append(start + (end - start) * (column - left) / (right - left))
    return heights
