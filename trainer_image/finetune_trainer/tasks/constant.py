"""What the best answer that ignores its input would be: shared by the tasks' ``baseline``. Pure arithmetic on arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Enough rows for the frequencies of tokens. More would only take time.
_MAX_ROWS = 20_000


def column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of numbers, (rows,), or of lists of the same length, (rows, numbers)."""
    values = table[name]
    return pc.list_flatten(values).to_numpy().reshape(len(values), -1) if pa.types.is_list(values.type) else values.to_numpy()


def tokens(table: pa.Table, name: str, ignored: np.ndarray) -> np.ndarray:
    """Return the tokens of a column of lists without the ignored ones: int (tokens,). Of many rows, some spread evenly."""
    rows = np.linspace(0, len(table) - 1, min(len(table), _MAX_ROWS)).astype(np.int64)
    found = pc.list_flatten(table[name].take(rows)).to_numpy()
    return found[~np.isin(found, ignored)]


def unigram_losses(train: np.ndarray, held_out: np.ndarray, vocabulary: int) -> tuple[np.ndarray, int]:
    """Return the loss of each held-out token, and the most frequent token, for the frequencies of the training tokens.

    Witten-Bell smoothing gives the tokens that the training data lacks as much weight as there are different tokens in it.
    train, held_out: int (tokens,).
    """
    size = max(vocabulary, int(train.max(initial=0)) + 1, int(held_out.max(initial=0)) + 1)
    counts = np.bincount(train, minlength=size)
    kinds = np.count_nonzero(counts)
    probabilities = (counts + kinds / size) / (len(train) + int(kinds))
    return -np.log(probabilities[held_out]), int(counts.argmax())
