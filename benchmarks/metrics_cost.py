"""What metrics cost a training step: the calls that a loop makes in each step, without the step.

`python benchmarks/metrics_cost.py` prints µs per step and the share of a step of 50 ms, with one forward pass a step and with
eight, and a log line every ten steps. On a GPU the clock of the forward pass records events, which is measured, too. The limit is
half a per cent.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "crds"), str(ROOT / "trainer_image")]
STEP_SECONDS = 0.05
ROUNDS, STEPS, LOG_EVERY = 20, 200, 10


def main() -> None:
    """Print one line for each number of forward passes."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # before the first import of prometheus_client
        import transformers

        config = transformers.GPT2Config(
            n_layer=1, n_embd=8, n_head=1, vocab_size=8, n_positions=8, bos_token_id=0, eos_token_id=1
        )
        model = transformers.GPT2LMHeadModel(config)
        for passes in (1, 8):
            seconds = measure(model, config, passes)
            share = seconds / STEP_SECONDS
            step = f"a step of {STEP_SECONDS * 1000:.0f} ms"
            print(f"{passes} forward pass(es) a step: {seconds * 1e6:.1f} µs a step, {share:.3%} of {step}")


def measure(model: object, config: object, passes: int) -> float:
    """Seconds per step: the median over rounds of a round's mean, as other work on the machine only ever adds."""
    from finetune_api import metrics as declared
    from finetune_trainer.monitoring.device_stats import Meter
    from finetune_trainer.monitoring.metrics import WorkerMetrics

    metrics, meter = WorkerMetrics("team", "benchmark", 0), Meter(model, config, length=128, compiled=True)
    metrics.attach(meter)
    model.train()  # type: ignore[attr-defined]

    def step(number: int) -> None:
        metrics.waited(0.001)
        for _ in range(passes):
            # What the hooks do around the forward pass, whose own time is none of this.
            meter.forward.begin(model, ())
            meter.forward.end()
        metrics.tokens(4096)
        metrics.step(STEP_SECONDS, time.time())
        metrics.count(declared.TRAINING_SAMPLES, 32)
        metrics.set(declared.TRAINING_STEP, number)
        if number % LOG_EVERY == 0:
            for metric in (declared.TRAINING_LOSS, declared.TRAINING_LEARNING_RATE, declared.TRAINING_GRADIENT_NORM):
                metrics.set(metric, 0.5)
            metrics.logged()

    means = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for number in range(STEPS):
            step(number)
        means.append((time.perf_counter() - started) / STEPS)
    return statistics.median(means)


if __name__ == "__main__":
    main()
