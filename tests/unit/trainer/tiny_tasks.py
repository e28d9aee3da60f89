"""Tasks on tiny random models, built without a network, and assertions that every split gives the same result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from finetune_api import resource
from finetune_api.spec.tasks import TASK_METRICS
from finetune_trainer.tasks import task_class
from finetune_trainer.tasks.base import Batch, DataInfo, Row, Scores, Task

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
WORDS = ("the", "film", "was", "great", "dull", "anna", "went", "to", "new", "york", "play", "##ing", "##s", "a", ".")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXTS = ("the film was great", "dull", "anna went to new york .", "playing films", "a a a a a a a a a", "the films was dull .")


def make_tokenizer() -> Any:
    """Build a WordPiece tokenizer like BERT's: `films` is film ##s."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL.values(), *WORDS))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **SPECIAL)
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def make_task(name: Any, info: DataInfo | None = None, tokenizer: Any = None, config: Any = None, **spec: Any) -> Task:
    """Build a task with a random model, which is a BERT unless a configuration is given. Dropout is 0."""
    tokenizer = tokenizer or make_tokenizer()
    config = config or bert_config(len(tokenizer))
    source: Mapping[str, Any] = {
        "task": name, "model": {"claim": {"claimName": "m"}}, "datasets": [{"claim": {"claimName": "d"}}], **spec,
    }  # fmt: skip
    task = task_class(name)(resource.parse_spec(dict(source)), tokenizer, config, info or DataInfo())
    arguments = task.model_kwargs()
    arguments.pop("ignore_mismatched_sizes", None)
    for key, value in arguments.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    task.model = getattr(transformers, task.auto_model).from_config(config)
    # These weights are larger than those of a new model, so that differences are visible.
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    task.prepare_model()
    task.model.eval()
    return task


def bert_config(vocabulary: int) -> Any:
    """Return the configuration of a BERT of a few thousand weights."""
    return transformers.BertConfig(vocab_size=vocabulary, max_position_embeddings=32, **SHAPE)


def rows_of(task: Task, **columns: list[Any]) -> list[Row]:
    """Return the encoded rows, augmented as in the first epoch."""
    encoded = task.encode(columns)
    rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    return [task.augment(row, np.random.default_rng([0, 0, number])) for number, row in enumerate(rows)]


def assert_split_does_not_matter(task: Task, rows: Sequence[Row]) -> None:
    """Assert that the sums of losses, counts and gradients are the same for any split into micro-batches with padding rows."""
    padding_rows = [task.padding_row(row) for row in rows]
    whole = summed(task, [rows])
    splits = [
        [[row] for row in rows],
        [rows[:1], [*rows[1:], padding_rows[0]]],
        [[padding_rows[-1], *rows[:2]], rows[2:], [padding_rows[0]], padding_rows],
    ]
    assert whole[0] > 0.1
    for split in splits:
        loss, count, gradients = summed(task, split)
        assert count == whole[1]
        np.testing.assert_allclose(loss, whole[0], rtol=1e-6)
        assert torch.linalg.norm(gradients - whole[2]) / torch.linalg.norm(whole[2]) < 1e-6
    nothing = summed(task, [padding_rows])
    assert (nothing[0], nothing[1]) == (0.0, 0)
    assert not nothing[2].any()


def summed(task: Task, batches: Sequence[Sequence[Row]]) -> tuple[float, int, torch.Tensor]:
    """Return loss, count and gradients, summed over the batches. DDP needs a gradient of every weight in every batch."""
    task.model.zero_grad()
    loss, count = 0.0, 0
    for rows in batches:
        batch = task.collate(rows)
        count += task.count_loss_labels(batch)
        part = task.loss(task.model, batch)
        assert part.dtype == torch.float32
        part.backward()
        loss += part.item()
        assert all(parameter.grad is not None for parameter in task.model.parameters())
    return loss, count, torch.cat([parameter.grad.flatten() for parameter in task.model.parameters()]).double()


def evaluated(task: Task, batches: Sequence[Sequence[Row]]) -> tuple[dict[str, float], dict[str, Any], Scores]:
    """Return metrics, details and scores of an evaluation in these batches."""
    with torch.no_grad():
        parts = [task.score(task.model, task.collate(rows)) for rows in batches]
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    metrics, details = task.compute_metrics(scores)
    assert metrics.keys() <= set(TASK_METRICS[task.spec.task]), "users may name it in evaluation.best"
    return metrics, details, scores


def assert_evaluation_does_not_depend_on_batches(task: Task, rows: Sequence[Row]) -> None:
    """Assert that metrics are the same for one batch, for single rows, and for batches with padding rows."""
    metrics, details, scores = evaluated(task, [rows])
    others = [[[row] for row in rows], [[task.padding_row(rows[0]), *rows[:2]], rows[2:], [task.padding_row(rows[1])]]]
    for batches in others:
        again, more, arrays = evaluated(task, batches)
        assert again.keys() == metrics.keys()
        np.testing.assert_allclose([again[name] for name in metrics], list(metrics.values()), rtol=1e-5)
        assert more == details
        assert task.predictions(arrays) == task.predictions(scores)


def logits_of(task: Task, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch."""
    with torch.no_grad():
        logits: torch.Tensor = task.model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    return logits
