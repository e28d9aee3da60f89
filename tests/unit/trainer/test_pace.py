"""How fast the steps between two logged ones were."""

import pytest

from finetune_trainer.loops.pace import Pace


def test_rates_are_those_of_all_processes_since_the_last_time() -> None:
    pace = Pace(rows=16)
    for seconds in (0.5, 1.5):
        pace.tokens(100)
        pace.step(seconds)
    assert pace.take() == {"stepSeconds": 1.0, "samplesPerSecond": 16.0, "tokensPerSecond": 100.0}
    pace.step(0.25)
    assert pace.take() == {"stepSeconds": 0.25, "samplesPerSecond": 64.0, "tokensPerSecond": 0.0}


@pytest.mark.parametrize("seconds", [[], [0.0]])
def test_without_time_there_is_no_rate(seconds: list[float]) -> None:
    pace = Pace(rows=16)
    for each in seconds:
        pace.step(each)
    assert pace.take() == {}
