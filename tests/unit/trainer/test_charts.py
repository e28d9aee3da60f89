"""Charts of the report: what they draw of many points, and that what is in them is text in the page's colours."""

import pytest

from finetune_trainer.report.charts import line_chart, smoothed, thinned
from finetune_trainer.report.page import number


def test_a_mean_over_a_window_keeps_steps_ends_and_straight_lines() -> None:
    line = [(float(step), 2.0 * step) for step in range(100)]
    assert [step for step, _ in smoothed(line)] == [step for step, _ in line]
    assert [value for _, value in smoothed(line)] == pytest.approx([value for _, value in line])
    spike = [(float(step), 100.0 if step == 50 else 0.0) for step in range(100)]
    assert max(value for _, value in smoothed(spike)) < 15


def test_of_very_many_points_a_screen_full_is_left_with_the_same_mean() -> None:
    points = [(float(step), float(step % 7)) for step in range(100_000)]
    few = thinned(points)
    assert 400 < len(few) <= 800
    assert sum(value for _, value in few) / len(few) == pytest.approx(3.0, abs=0.01)
    assert thinned(points[:800]) == points[:800]


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
def test_numbers_are_as_short_as_says_enough(value: float | None, shown: str) -> None:
    assert number(value) == shown
