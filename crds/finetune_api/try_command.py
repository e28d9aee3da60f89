"""The command that tries a finished model: printed by `finetune run` and `kubectl finetune pull`, to be run as it is."""

import shlex

from finetune_api.spec import FineTuneJobSpec

_MAX_SAMPLE_LENGTH = 100  # characters; a longer sample would hide the command
_TEXTS = {"masked-lm": "A text with one [MASK] word."}
_TEXT = "Write a text here."
_PAIR = "Write the second text here."


def predict_command(directory: str, spec: FineTuneJobSpec | None, elsewhere: bool = False) -> str:
    """Return `finetune predict` for the model in a directory, with a text of the kind that the model was trained for.

    spec: that of the job; None if it can't be read. elsewhere: the model was trained on another machine, so this one does not
    know the directory of the base model that an adapter from a claim needs.
    """
    words = ["finetune", "predict", directory]
    if spec is None:
        return shlex.join([*words, _TEXT])
    text, pair = _first_sample(spec) or (_TEXTS.get(spec.task, _TEXT), _PAIR if _has_pairs(spec) else None)
    command = shlex.join([*words, text, *(["--pair", pair] if pair else [])])
    claim = spec.model.claim
    if not elsewhere or claim is None or not has_adapter(spec):
        return command
    return f"{command} --claim {claim.claim_name}=DIR"


def has_adapter(spec: FineTuneJobSpec) -> bool:
    """Return whether the finished model is an adapter."""
    return spec.model.lora is not None and not (spec.publish and spec.publish.merge_adapter)


def _has_pairs(spec: FineTuneJobSpec) -> bool:
    return any(dataset.columns.text_pair for dataset in spec.datasets)


def _first_sample(spec: FineTuneJobSpec) -> tuple[str, str | None] | None:
    """Return text and second text of the first sample that is short enough for a command line."""
    for sample in spec.samples or ():
        text = sample.text or next((message.content for message in reversed(sample.messages or ())), "")
        if 0 < len(text) + len(sample.text_pair or "") <= _MAX_SAMPLE_LENGTH and text.isprintable() and not text.startswith("-"):
            return text, sample.text_pair
    return None
