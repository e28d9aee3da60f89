"""A curve in the cells of a terminal: Braille has eight dots per cell, two across and four down."""

import math
from collections.abc import Sequence

_BRAILLE = 0x2800
# Bits of the dots of a cell, by column and row from the top.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def draw_curve(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """Lines of a curve through points (x, y), with the largest and the smallest y at its left.

    width, height: in cells, the labels included; x from the first point to the last, which are in order. Values that are no
    numbers are left out. Empty with fewer than two points.
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
        # A steep part is drawn from where the last column ended, so that the curve has no holes.
        first, last = (dot, dot) if dot == before else (before + 1, dot) if dot > before else (dot, before - 1)
        for row in range(first, last + 1):
            cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
        before = dot
    texts = ["".join(chr(_BRAILLE + bits) for bits in line) for line in cells]
    names = [labels[0], *[""] * (height - 2), labels[1]] if height > 1 else [labels[0]]
    return [f"{name:>{margin}} ┤{text}" for name, text in zip(names, texts, strict=True)]


def _interpolate(points: Sequence[tuple[float, float]], columns: int) -> list[float]:
    """y at each column: the mean of the points in it, or on the straight line between its neighbours."""
    first, last = points[0][0], points[-1][0]
    found: list[list[float]] = [[] for _ in range(columns)]
    for x, y in points:
        found[round((x - first) / (last - first) * (columns - 1))].append(y)
    known = [(column, sum(values) / len(values)) for column, values in enumerate(found) if values]
    heights = []
    position = 0
    for column in range(columns):
        while position < len(known) - 2 and known[position + 1][0] <= column:
            position += 1
        (left, start), (right, end) = known[position], known[position + 1]
        heights.append(start + (end - start) * (column - left) / (right - left))
    return heights
