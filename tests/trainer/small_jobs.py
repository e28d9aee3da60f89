"""Models of a few thousand weights and data of a few dozen rows for every task, generated the same way each time."""

import json
import pathlib
import random
from typing import Any

WORDS = [
    f"{first}{second}" for first in ("ba", "de", "ki", "lo", "mu", "ne", "po", "ru") for second in ("sa", "te", "vi", "zu", "la")
]
TYPES = ("PER", "LOC")
ROWS, HELD_OUT = 61, 13
Job = dict[str, Any]


def write_all(directory: pathlib.Path) -> None:
    """Write models/encoder, models/decoder and data/ below a directory."""
    _write_models(directory / "models")
    (directory / "data").mkdir(parents=True)
    makers = {
        "texts": _text, "pairs": _pair, "ratings": _rating, "topics": _topics, "tags": _tags,
        "prompts": _prompt, "chats": _chat, "preferences": _preference,
    }  # fmt: skip
    for name, make in makers.items():
        for split, count in (("train", ROWS), ("eval", HELD_OUT)):
            draw = random.Random(f"{name} {split}")
            lines = [json.dumps(make(draw)) for _ in range(count)]
            (directory / "data" / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n")


def job(task: str, family: str, data: str, steps: int = 20, **changes: Any) -> Job:
    """Return a spec on the claim `small`. changes: fields of the spec; those of model, dataset and training are merged."""
    training = {"maxSteps": steps, "globalBatchSize": 8, "learningRate": 1e-3, "maxTokens": 48, "precision": "fp32"}
    return {
        "task": task,
        "model": {"claim": {"claimName": "small", "path": f"models/{family}"}, **changes.pop("model", {})},
        "datasets": [
            {"claim": {"claimName": "small", "path": f"data/{data}-train.jsonl", "evalPath": f"data/{data}-eval.jsonl"}}
            | changes.pop("dataset", {})
        ],
        "training": training | changes.pop("training", {}),
        **changes,
    }


STREAMED = {"streaming": True}
_HALVE = {"factor": 0.5, "patience": 0, "threshold": 10, "threshold_mode": "abs"}
JOBS: dict[str, Job] = {
    "text-classification": job("text-classification", "encoder", "texts"),
    "text-classification-balanced": job("text-classification", "encoder", "texts", classification={"balanced": True}),
    "text-classification-pairs": job("text-classification", "encoder", "pairs", dataset={"columns": {"textPair": "second"}}),
    "text-classification-regression": job(
        "text-classification", "encoder", "ratings", classification={"problemType": "Regression"}
    ),
    "text-classification-multilabel": job("text-classification", "encoder", "topics", dataset={"columns": {"labels": "topics"}}),
    "text-classification-streaming": job(
        "text-classification", "encoder", "texts", dataset=STREAMED, classification={"labels": ["bad", "fair", "good"]}
    ),
    # The labels are smoothed, and the learning rate is halved after each evaluation except the first.
    "text-classification-plateau": job(
        "text-classification",
        "encoder",
        "texts",
        evaluation={"everySteps": 3},
        training={"scheduler": "reduce_lr_on_plateau", "labelSmoothing": 0.1, "arguments": {"lr_scheduler_kwargs": _HALVE}},
    ),
    "text-classification-decoder": job("text-classification", "decoder", "texts"),
    "token-classification": job("token-classification", "encoder", "tags"),
    "masked-lm": job("masked-lm", "encoder", "texts", samples=[{"text": "basa [MASK] kite"}]),
    "causal-lm": job("causal-lm", "decoder", "texts"),
    # maxTokens is so small that texts become several rows, and that prompts leave no room for an answer.
    "causal-lm-streaming": job("causal-lm", "decoder", "texts", dataset=STREAMED, training={"maxTokens": 8}),
    "sft-prompts": job("sft", "decoder", "prompts"),
    "sft-prompts-streaming": job("sft", "decoder", "prompts", dataset=STREAMED, training={"maxTokens": 10}),
    "sft-chats": job("sft", "decoder", "chats"),
    "sft-chats-lora": job("sft", "decoder", "chats", model={"lora": {"dropout": 0.0}}),
    "dpo": job("dpo", "decoder", "preferences"),
    "dpo-lora": job("dpo", "decoder", "preferences", model={"lora": {"dropout": 0.0}}),
}
NATIVE = [name for name, spec in JOBS.items() if spec["task"] in ("text-classification", "token-classification", "masked-lm")]


def _sentence(draw: random.Random, least: int = 2, most: int = 20) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def _text(draw: random.Random) -> Job:
    text = _sentence(draw)
    return {"text": text, "label": ("good", "bad", "fair")[sum(word.startswith("b") for word in text.split()) % 3]}


def _pair(draw: random.Random) -> Job:
    first, second = _sentence(draw, 2, 8), _sentence(draw, 2, 8)
    return {"text": first, "second": second, "label": "same" if first[0] == second[0] else "other"}


def _rating(draw: random.Random) -> Job:
    text = _sentence(draw)
    return {"text": text, "label": len(text.split()) / 4}


def _topics(draw: random.Random) -> Job:
    text = _sentence(draw)
    return {"text": text, "topics": sorted({word[:2] for word in text.split()} & {"ba", "de", "ki"})}


def _tags(draw: random.Random) -> Job:
    tokens = draw.choices(WORDS, k=draw.randint(2, 15))
    tags = [f"B-{TYPES[word.startswith('l')]}" if word[0] in "kl" else "O" for word in tokens]
    return {"tokens": tokens, "tags": tags}


def _prompt(draw: random.Random) -> Job:
    prompt = _sentence(draw, 2, 10)
    return {"prompt": f"{prompt} ", "completion": " ".join(reversed(prompt.split()))}


def _chat(draw: random.Random) -> Job:
    turns = [
        {"role": ("user", "assistant")[turn % 2], "content": _sentence(draw, 2, 6)} for turn in range(2 * draw.randint(1, 2))
    ]
    return {"messages": turns}


def _preference(draw: random.Random) -> Job:
    prompt = _sentence(draw, 2, 8)
    return {"prompt": f"{prompt} ", "chosen": _sentence(draw, 2, 8), "rejected": _sentence(draw, 2, 8)}


def _write_models(directory: pathlib.Path) -> None:
    import tokenizers
    import torch
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|im_start|>", "<|im_end|>"]
    roles = ["user", "assistant", "system"]
    vocabulary = {word: number for number, word in enumerate([*special, *roles, *WORDS])}
    for name in ("encoder", "decoder"):
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokens: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
        if name == "encoder":
            inner.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
            tokens |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        else:
            tokens |= {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
        PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **tokens).save_pretrained(directory / name)
    torch.manual_seed(0)
    shape = {"vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = BertConfig(
        **shape, intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    BertForMaskedLM(encoder).save_pretrained(directory / "encoder")
    decoder = LlamaConfig(
        **shape, intermediate_size=64, max_position_embeddings=64, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
    )  # fmt: skip
    LlamaForCausalLM(decoder).save_pretrained(directory / "decoder")
