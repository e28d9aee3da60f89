"""Writes a model and a data set for the test of a cluster: ``python -m finetune_trainer.commands.smoke DIRECTORY``.

``model/`` is a random BERT with a few thousand weights, and a tokenizer that knows the words below. ``data/`` has 64 labelled
training rows and 16 evaluation rows. This needs no Hub. `helm test` runs it in a pod before it creates its FineTuneJob.
"""

import csv
import pathlib
import random
import sys
from collections.abc import Sequence

import tokenizers
import transformers

_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_NOUNS = ("film", "book", "song", "meal", "trip", "show")
_WORDS = {"good": ("great", "lovely", "fine", "brilliant"), "bad": ("poor", "dull", "awful", "weak")}
_FILLERS = ("the", "was", "and", "really", "it")
_TRAIN_ROWS = 64
_EVAL_ROWS = 16
_MAX_TOKENS = 32


def write(directory: pathlib.Path) -> None:
    """Write model and data below a directory. Overwrite existing files."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_model(directory / "model")
    rows = random.Random(0)
    (directory / "data").mkdir(exist_ok=True)
    for name, number in (("train", _TRAIN_ROWS), ("eval", _EVAL_ROWS)):
        with (directory / "data" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(_row(rows) for _ in range(number))


def _row(rows: random.Random) -> tuple[str, str]:
    label = rows.choice(sorted(_WORDS))
    first, second = rows.sample(_WORDS[label], 2)
    return f"the {rows.choice(_NOUNS)} was {first} and really {second}", label


def _write_model(directory: pathlib.Path) -> None:
    words = sorted({*_FILLERS, *_NOUNS, *(word for words in _WORDS.values() for word in words)})
    vocabulary = {word: number for number, word in enumerate((*_SPECIAL.values(), *words))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    separator, classifier = ((_SPECIAL[name], vocabulary[_SPECIAL[name]]) for name in ("sep_token", "cls_token"))
    tokenizer.post_processor = tokenizers.processors.BertProcessing(separator, classifier)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=_MAX_TOKENS, **_SPECIAL).save_pretrained(
        directory
    )
    transformers.set_seed(0)
    shape = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=_MAX_TOKENS,
    )  # fmt: skip
    transformers.BertModel(shape).save_pretrained(directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write to the directory that is the only argument. Return the exit code."""
    options = sys.argv[1:] if arguments is None else arguments
    if len(options) != 1:
        print("usage: python -m finetune_trainer.commands.smoke DIRECTORY", file=sys.stderr)  # noqa: T201
        return 2
    directory = pathlib.Path(options[0])
    write(directory)
    print(f"wrote a tiny model and {_TRAIN_ROWS + _EVAL_ROWS} rows to {directory}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
