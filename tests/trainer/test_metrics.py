"""Prometheus metrics of a real training: both loops set every metric that a CPU can have, to correct values."""

import signal

import pytest

from finetune_api import metrics as declared
from finetune_trainer.pod.server import build_registry
from trainer import small_jobs
from trainer.pod_processes import Pod, PodGroup

STEPS = 12
JOB = {"namespace": "team", "finetunejob": "job"}
# Metrics that need a GPU, and metrics that only the launcher sets (tests/unit/trainer/test_server.py).
SET_ELSEWHERE = {
    declared.TRAINING_MFU,
    declared.GPU_MEMORY_ALLOCATED,
    declared.GPU_MEMORY_PEAK,
    declared.GPU_MEMORY_TOTAL,
    *declared.LAUNCHER_METRICS,
}


class Scrape:
    """The metrics of a pod's files, as a scrape gets them."""

    def __init__(self, pod: Pod) -> None:
        self._registry = build_registry(pod.state)

    def names(self) -> set[str]:
        return {family.name for family in self._registry.collect() if family.samples}

    def value(self, metric: declared.Metric, suffix: str = "", **labels: str) -> float:
        found = self._registry.get_sample_value(metric.name + suffix, {**JOB, **labels})
        assert found is not None, metric.name
        return found


@pytest.mark.parametrize("loop", ["Trainer", "Native"])
def test_a_training_sets_every_metric_that_a_cpu_can_have(pod_group: PodGroup, loop: str) -> None:
    training = small_jobs.job("text-classification", "encoder", "texts", STEPS)["training"] | {"loop": loop}
    pod, report = pod_group.run(pod_group.config("out", processes=2, steps=STEPS, training=training), fresh=True)
    assert report.phase == "Succeeded", pod.log.read_text()
    scrape = Scrape(pod)
    expected = {metric.name.removesuffix("_total") for metric in declared.TRAINER_METRICS if metric not in SET_ELSEWHERE}
    assert scrape.names() == expected

    assert scrape.value(declared.TRAINING_STEP) == scrape.value(declared.TRAINING_MAX_STEPS) == STEPS
    assert scrape.value(declared.TRAINING_SAMPLES) == STEPS * training["globalBatchSize"]
    assert report.evaluation is not None
    for name, value in report.evaluation.metrics.items():
        assert scrape.value(declared.TRAINING_EVALUATION, figure=name) == pytest.approx(value, abs=1e-5)
    assert scrape.value(declared.CHECKPOINT_FAILURES) == scrape.value(declared.NON_FINITE_LOSS) == 0
    for rank in ("0", "1"):
        assert scrape.value(declared.TRAINING_TOKENS, rank=rank) > 0
        assert scrape.value(declared.STEP_DURATION, "_count", rank=rank) == STEPS
        steps = scrape.value(declared.STEP_DURATION, "_sum", rank=rank)
        assert 0 < scrape.value(declared.DATA_WAIT, rank=rank) < steps
        assert 0 < scrape.value(declared.FORWARD_DURATION, rank=rank) < steps


def test_counters_continue_after_a_restart_in_place(pod_group: PodGroup) -> None:
    pod = pod_group.start(pod_group.config("out", steps=STEPS), fault={"seconds": 0.3}, fresh=True)
    pod.wait_for_step(5)
    before = Scrape(pod).value(declared.TRAINING_SAMPLES)
    pod.signal_worker(0, signal.SIGKILL)
    assert pod.final_report().phase == "Succeeded", pod.log.read_text()
    scrape = Scrape(pod)
    assert scrape.value(declared.TRAINING_SAMPLES) > before, "a counter that decreases gives a wrong rate"
    assert scrape.value(declared.TRAINING_STEP) == STEPS, "a gauge has the last value that was set"
