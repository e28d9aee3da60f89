"""Measure what metrics cost a training step: `python benchmarks/metrics_cost.py`.

It makes the calls that a loop makes in each step, without the step itself. It prints µs per step and the share of a step of 50
ms, with one and with eight forward passes per step, and a log line every ten steps. On a GPU, this includes the CUDA events that
the timer of the forward pass records. The limit is half a per cent.
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
    """Return the seconds per step: the median of the rounds' means, because other processes only add time."""
    from finetune_api import metrics as declared
    from finetune_trainer.monitoring.device_stats import DeviceStats
    from finetune_trainer.monitoring.metrics import WorkerMetrics

    metrics, device_stats = WorkerMetrics("team", "benchmark", 0), DeviceStats(model, config, length=128, compiled=True)
    metrics.attach(device_stats)
    model.train()  # type: ignore[attr-defined]

    def step(number: int) -> None:
        metrics.add_data_wait(0.001)
        for _ in range(passes):
            # The hooks around the forward pass, without the forward pass.
            device_stats.forward_timer.begin(model, ())
            device_stats.forward_timer.end()
        metrics.add_tokens(4096)
        metrics.observe_step(STEP_SECONDS, time.time())
        metrics.inc(declared.TRAINING_SAMPLES, 32)
        metrics.set(declared.TRAINING_STEP, number)
        if number % LOG_EVERY == 0:
            for metric in (declared.TRAINING_LOSS, declared.TRAINING_LEARNING_RATE, declared.TRAINING_GRADIENT_NORM):
                metrics.set(metric, 0.5)
            metrics.set_device_stats()

    means = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for number in range(STEPS):
            step(number)
        means.append((time.perf_counter() - started) / STEPS)
    return statistics.median(means)


if __name__ == "__main__":
    main()
