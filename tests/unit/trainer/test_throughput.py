"""Throughput between two logged steps."""

import pytest

from finetune_trainer.loops.throughput import Throughput


def test_rates_cover_all_processes_since_the_last_read() -> None:
    throughput = Throughput(rows=16)
    for seconds in (0.5, 1.5):
        throughput.add_tokens(100)
        throughput.add_step(seconds)
    assert throughput.read_and_reset() == {"stepSeconds": 1.0, "samplesPerSecond": 16.0, "tokensPerSecond": 100.0}
    throughput.add_step(0.25)
    assert throughput.read_and_reset() == {"stepSeconds": 0.25, "samplesPerSecond": 64.0, "tokensPerSecond": 0.0}


@pytest.mark.parametrize("seconds", [[], [0.0]])
def test_without_time_there_is_no_rate(seconds: list[float]) -> None:
    throughput = Throughput(rows=16)
    for each in seconds:
        throughput.add_step(each)
    assert throughput.read_and_reset() == {}
