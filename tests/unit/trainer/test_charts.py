"""Charts of the report: downsampling of many points, escaped text, and the colours of the page."""

import pytest

from finetune_trainer.report.charts import downsample, line_chart, smooth
from finetune_trainer.report.page import format_number


def test_smoothing_keeps_steps_and_straight_lines_and_lowers_spikes() -> None:
    line = [(float(step), 2.0 * step) for step in range(100)]
    assert [step for step, _ in smooth(line)] == [step for step, _ in line]
    assert [value for _, value in smooth(line)] == pytest.approx([value for _, value in line])
    spike = [(float(step), 100.0 if step == 50 else 0.0) for step in range(100)]
    assert max(value for _, value in smooth(spike)) < 15


def test_downsampling_leaves_at_most_800_points_with_the_same_mean() -> None:
    points = [(float(step), float(step % 7)) for step in range(100_000)]
    few = downsample(points)
    assert 400 < len(few) <= 800
    assert sum(value for _, value in few) / len(few) == pytest.approx(3.0, abs=0.01)
    assert downsample(points[:800]) == points[:800]


def test_a_chart_is_text_and_lines_in_the_page_s_colours() -> None:
    svg = line_chart("Loss", {"a < b": [(1, 1.0), (2, 0.5)], "other": [(1, 2.0), (2, 1.0)]}, [2], ["other"])
    assert svg.startswith("<svg")
    assert "a &lt; b</text>" in svg
    for colour in ("var(--line-0)", "var(--line-1)", "var(--ink)", "var(--faint)"):
        assert colour in svg
    assert "metadata" not in svg
    assert svg == line_chart("Loss", {"a < b": [(1, 1.0), (2, 0.5)], "other": [(1, 2.0), (2, 1.0)]}, [2], ["other"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.98765, "0.9877"),
        (0.5, "0.5"),
        (2e-5, "2e-05"),
        (12345.0, "12,345"),
        (3, "3"),
        (float("nan"), "–"),
        (None, "–"),
        (0.0, "0"),
    ],
)
def test_numbers_are_shown_with_few_digits(value: float | None, shown: str) -> None:
    assert format_number(value) == shown
