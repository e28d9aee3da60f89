"""What a real training tells Prometheus: every metric that a CPU can have, from both loops, with figures that are true."""

import pathlib
import signal
from collections.abc import Iterator

import pytest

from finetune_api import metrics as declared
from finetune_trainer.pod.server import build_registry
from trainer import small
from trainer.pods import Gang, Pod

STEPS = 12
JOB = {"namespace": "team", "finetunejob": "job"}
# On a GPU alone, and what only the launcher tells (tests/unit/trainer/test_telemetry.py).
ELSEWHERE = {
    declared.TRAINING_MFU,
    declared.GPU_MEMORY_ALLOCATED,
    declared.GPU_MEMORY_PEAK,
    declared.GPU_MEMORY_TOTAL,
    *declared.OF_THE_LAUNCHER,
}


@pytest.fixture(scope="module")
def claim(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("small") / "claim"
    small.write_all(directory)
    return directory


@pytest.fixture
def gang(tmp_path: pathlib.Path, claim: pathlib.Path) -> Iterator[Gang]:
    made = Gang(tmp_path, claim)
    yield made
    made.close()


class Told:
    """What a pod's files of metrics hold, as a scrape gets it."""

    def __init__(self, pod: Pod) -> None:
        self._registry = build_registry(pod.state)

    def names(self) -> set[str]:
        return {family.name for family in self._registry.collect() if family.samples}

    def value(self, metric: declared.Metric, suffix: str = "", **labels: str) -> float:
        found = self._registry.get_sample_value(metric.name + suffix, {**JOB, **labels})
        assert found is not None, metric.name
        return found


@pytest.mark.parametrize("loop", ["trainer", "native"])
def test_a_training_tells_every_metric_that_a_cpu_can_have(gang: Gang, loop: str) -> None:
    training = small.job("text-classification", "encoder", "texts", STEPS)["training"] | {"loop": loop}
    pod, report = gang.run(gang.config("out", processes=2, steps=STEPS, training=training))
    assert report.phase == "Succeeded", pod.log.read_text()
    told = Told(pod)
    expected = {metric.name.removesuffix("_total") for metric in declared.TRAINER_METRICS if metric not in ELSEWHERE}
    assert told.names() == expected

    assert told.value(declared.TRAINING_STEP) == told.value(declared.TRAINING_MAX_STEPS) == STEPS
    assert told.value(declared.TRAINING_SAMPLES) == STEPS * training["globalBatchSize"]
    assert report.evaluation is not None
    for name, value in report.evaluation.metrics.items():
        assert told.value(declared.TRAINING_EVALUATION, figure=name) == pytest.approx(value, abs=1e-5)
    assert told.value(declared.CHECKPOINT_FAILURES) == told.value(declared.NON_FINITE_LOSS) == 0
    for rank in ("0", "1"):
        assert told.value(declared.TRAINING_TOKENS, rank=rank) > 0
        assert told.value(declared.STEP_DURATION, "_count", rank=rank) == STEPS
        steps = told.value(declared.STEP_DURATION, "_sum", rank=rank)
        assert 0 < told.value(declared.DATA_WAIT, rank=rank) < steps
        assert 0 < told.value(declared.FORWARD_DURATION, rank=rank) < steps


def test_counters_go_on_where_a_process_was_started_again_in_place(gang: Gang) -> None:
    pod = gang.start(gang.config("out", steps=STEPS), fault={"seconds": 0.3})
    pod.wait_for_step(5)
    before = Told(pod).value(declared.TRAINING_SAMPLES)
    pod.signal_worker(0, signal.SIGKILL)
    assert pod.last_word().phase == "Succeeded", pod.log.read_text()
    told = Told(pod)
    assert told.value(declared.TRAINING_SAMPLES) > before, "a counter that went back would be a rate that is wrong"
    assert told.value(declared.TRAINING_STEP) == STEPS, "a gauge is what was said last"
