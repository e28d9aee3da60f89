"""Models of a few thousand random weights, and tokenizers. A task treats them like large ones."""

import pathlib
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.tasks.base import DataInfo, Task

TEXTS = [
    "The film was a delight from its first minute to the last.",
    "A bad film.",
    "What is the capital of France? Paris is the capital of France.",
    "Nothing happens in this film, and it happens slowly, again and again and again.",
    "system user assistant: You are a helpful assistant. What is two and two? Four.",
    "Hello! How are you?",
]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def build_tokenizer(**arguments: Any) -> Any:
    """Build a byte-level BPE of about 300 tokens: it can encode every text, and decoding returns the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **arguments}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def build_model(kind: str, vocabulary: int, seed: int = 0, **arguments: Any) -> Any:
    """Build a causal language model without dropout. Its weights are large enough for attention to distinguish tokens."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3, "use_cache": False}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        config = transformers.GPT2Config(**common, **sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **arguments)
    else:
        config = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[kind](
            **common, **SMALL, max_position_embeddings=128, **arguments
        )
    return transformers.AutoModelForCausalLM.from_config(config)


def save(directory: pathlib.Path, model: Any, tokenizer: Any) -> pathlib.Path:
    """Write model and tokenizer to a directory, as in a repository of the Hub."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def build_spec(task: str, **fields: Any) -> FineTuneJobSpec:
    """Build a spec. model: more fields of spec.model. All other arguments are fields of the spec."""
    source = {"hub": {"name": "tiny/model"}, **fields.pop("model", {})}
    data = [{"hub": {"name": "tiny/data"}}]
    return FineTuneJobSpec.model_validate({"task": task, "model": source, "datasets": data, **fields})


def build_task(kind: type[Task], spec: FineTuneJobSpec, tokenizer: Any, model: Any, **info: Any) -> Any:
    """Build a task with its model."""
    task = kind(spec, tokenizer, model.config, DataInfo(**info))
    task.model = model
    task.prepare_model()
    return task


def rows_of(task: Task, **columns: list[Any]) -> list[dict[str, Any]]:
    """Return the encoded rows, one dict each."""
    encoded = task.encode(columns)
    names = list(encoded)
    return [dict(zip(names, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def loss_and_gradient(task: Any, batches: list[list[dict[str, Any]]]) -> tuple[float, int, torch.Tensor]:
    """Return the summed loss of batches of rows, the number of counted labels, and the gradient of all trained weights."""
    task.model.zero_grad()
    total, count = 0.0, 0
    for rows in batches:
        batch = task.collate(rows)
        loss = task.loss(task.model, batch)
        loss.backward()
        total, count = total + loss.item(), count + task.count_loss_labels(batch)
    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    gradient = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained]
    return total, count, torch.cat([part.flatten() for part in gradient])


def assert_same_step(task: Any, one: list[list[dict[str, Any]]], other: list[list[dict[str, Any]]]) -> None:
    """Assert that two splits of the same rows have the same loss, count and gradient, to 1e-5."""
    loss, count, gradient = loss_and_gradient(task, one)
    other_loss, other_count, other_gradient = loss_and_gradient(task, other)
    assert other_count == count > 0
    assert abs(other_loss - loss) <= 1e-5 * abs(loss)
    assert gradient.norm() > 0
    assert (other_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def splits_with_padding(task: Any, rows: list[dict[str, Any]]) -> list[list[list[dict[str, Any]]]]:
    """Return ways to split rows into batches, some of them with padding rows. The first is one batch of all rows."""
    padding = [task.padding_row(row) for row in rows]
    return [
        [rows],
        [[row] for row in rows],
        [rows[:2], rows[2:]],
        [[*rows[:1], padding[-1]], [*rows[1:], *padding[:2]], [padding[0]]],
    ]
