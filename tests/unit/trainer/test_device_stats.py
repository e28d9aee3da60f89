"""What a process measures about itself, on a real CPU and on a fake GPU."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_trainer.monitoring import device_stats
from finetune_trainer.monitoring.device_stats import DeviceStats, ForwardTimer
from unit.trainer.tiny_models import build_model


class Slow(torch.nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return inputs


class Event:
    """An event of a fake GPU: 4 ms pass between two events, and the events up to number ``reached`` are complete."""

    made = 0
    reached = 1_000

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        Event.made += 1
        self.number = Event.made

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.number <= Event.reached

    def elapsed_time(self, later: "Event") -> float:
        assert later.query(), "reading an event that is not complete would wait for the GPU"
        return 4.0 * (later.number - self.number)


@pytest.fixture
def tiny() -> Any:
    return build_model("gpt2", 300)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 with 40 of 100 bytes in use."""
    monkeypatch.setattr(Event, "made", 0)
    fakes = {
        "is_available": lambda: True,
        "Event": Event,
        "get_device_name": lambda: "NVIDIA H200",
        "current_device": lambda: 0,
        "get_device_properties": lambda _: SimpleNamespace(total_memory=100),
        "memory_allocated": lambda: 40,
        "max_memory_allocated": lambda: 60,
    }
    for name, value in fakes.items():
        monkeypatch.setattr(device_stats.torch.cuda, name, value)


def test_forward_passes_in_training_are_timed_and_those_of_an_evaluation_are_not() -> None:
    model, timer = Slow(), ForwardTimer()
    timer.attach(model)
    model(torch.zeros(1))
    model.eval()(torch.zeros(1))
    assert len(timer._seconds) == 1
    seconds = timer.read()
    assert seconds is not None
    assert 0.02 <= seconds < 1
    assert timer.read() is None, "read() clears the measurements"


def test_the_number_of_timed_passes_is_limited() -> None:
    model, timer = torch.nn.Identity(), ForwardTimer()
    timer.attach(model)
    for _ in range(100):
        model(torch.zeros(1))
    assert len(timer._seconds) == device_stats._MAX_TIMED_PASSES


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_only_complete_passes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, timer = torch.nn.Identity(), ForwardTimer()
    timer.attach(model)
    for _ in range(3):
        model(torch.zeros(1))
    monkeypatch.setattr(Event, "reached", 4)
    assert timer.read() == pytest.approx(0.004)
    model(torch.zeros(1))
    assert timer.read() is None


def test_on_a_gpu_a_reading_has_memory_and_utilisation(tiny: Any, gpu: None) -> None:
    flops = device_stats.model_size(tiny, tiny.config).flops_per_token(16)
    reading = DeviceStats(tiny, tiny.config, length=16).read(tokens=1_000_000, seconds=2.0)
    assert reading.mfu == pytest.approx(1_000_000 * flops / 2.0 / 989.5e12)
    assert (reading.memory_allocated, reading.memory_peak, reading.memory_total) == (40, 60, 100)


def test_on_a_cpu_a_reading_has_neither_memory_nor_utilisation(tiny: Any) -> None:
    reading = DeviceStats(tiny, tiny.config, length=16).read(tokens=1000, seconds=1.0)
    assert (reading.mfu, reading.memory_total) == (None, None)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_model_has_no_timing_hook(tiny: Any, compiled: bool) -> None:
    DeviceStats(tiny, tiny.config, length=16, compiled=compiled)
    assert bool(tiny._forward_hooks) is not compiled
