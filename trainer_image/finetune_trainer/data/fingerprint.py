"""Computes the name of tokenised data from everything it depends on: content, tokenizer and options."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import transformers

from finetune_api.spec import FineTuneJobSpec
from finetune_api.wire import RunConfig
from finetune_trainer.data.sources import claim_files
from finetune_trainer.data.splits import split_names
from finetune_trainer.tasks.base import Task

# Increment this when reading or normalising changes its results or their report, so that older entries are not used.
DATA_VERSION = 4
# Options that change the training, but not the rows.
_UNRELATED = {
    "classification": {"class_weights", "balanced"},
    "masked_lm": {"probability"},
    "sft": {"packing"},
    "dpo": {"beta", "loss_type"},
}
# Location of the data. Its content or commit is part of the fingerprint instead.
_LOCATION_FIELDS = {"claim": {"claim_name", "path", "eval_path"}, "hub": {"revision"}}


def fingerprint(config: RunConfig, contents: Sequence[str], tokenizer: Any, model_config: Any, task_type: type[Task]) -> str:
    """Return 40 hexadecimal digits. contents: see describe_contents()."""
    spec = config.spec
    decisive = {
        "versions": [DATA_VERSION, task_type.encoding_version, transformers.__version__],
        "spec": _options(spec),
        "model": [getattr(model_config, name, None) for name in ("model_type", "max_position_embeddings", "pad_token_id")],
        "tokenizer": _tokenizer(tokenizer),
        "data": list(contents),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:40]


def describe_contents(config: RunConfig, revisions: Sequence[str]) -> list[str]:
    """Return for each data set its commit, or a hash of the files for training and evaluation.

    Raises FineTuneError if the files do not exist.
    """
    return [_content(config, index, revision) for index, revision in enumerate(revisions)]


def _options(spec: FineTuneJobSpec) -> dict[str, Any]:
    blocks: Any = {"task": True, "datasets": {"__all__": True}, **dict.fromkeys(_UNRELATED, True)}
    found = spec.model_dump(mode="json", include=blocks, exclude={**_UNRELATED, "datasets": {"__all__": _LOCATION_FIELDS}})
    return {**found, "seed": spec.training.seed, "max_tokens": spec.training.max_tokens}


def _tokenizer(tokenizer: Any) -> str:
    """Return a hash of vocabulary, rules, special tokens and chat template."""
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # the tokenizer sets both in each call
        backend.no_padding()
        vocabulary = backend.to_str()
    else:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    more = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.truncation_side]
    return hashlib.sha256((vocabulary + json.dumps(more, sort_keys=True, default=str)).encode()).hexdigest()


def _content(config: RunConfig, index: int, revision: str) -> str:
    """Return the commit of a repository, or the format of a claim's files and a hash of these files by split."""
    dataset = config.spec.datasets[index]
    if dataset.claim is None:
        return revision
    root = pathlib.Path(config.claims[dataset.claim.claim_name])
    field = f"spec.datasets[{index}]"
    found = claim_files(dataset.claim, field, root)
    digest = hashlib.sha256()
    for split in dict.fromkeys(filter(None, split_names(list(found.splits), dataset, field))):
        for file in found.splits[split]:
            digest.update(f"{split}\0{file.name}\0".encode())
            if dataset.streaming and split == dataset.train_split:  # it is too large to hash
                digest.update(str(file.path.stat().st_size).encode())
                continue
            with file.path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"{found.format}:{digest.hexdigest()}"
