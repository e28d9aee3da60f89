"""Chats as tokens: the template of the model, of the job or our own, and which of the tokens are the assistant's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.reasons import FineTuneError, Reason

START, END = "<|im_start|>", "<|im_end|>"
# With the marks of what the assistant says, which only transformers knows: what is saved goes without them.
_CHATML_FOR_TRAINING = (
    "{%- if bos_token %}{{- bos_token }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
CHATML = _MARKS.sub("", _CHATML_FOR_TRAINING)
_PRESETS = {"chatml": CHATML}

Messages = Sequence[Mapping[str, Any]]


def prepare(tokenizer: Any, asked: str | None) -> None:
    """Give the tokenizer the template that is asked for, else leave it its own, else chatml; doing it twice changes nothing.

    chatml ends a turn with a token of its own, by which an answer ends, too. asked: Jinja, or a preset's name. Raises
    FineTuneError for what is neither.
    """
    if asked is not None and asked not in _PRESETS and "{" not in asked:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.sft.chatTemplate: there is no preset {asked!r}; write {' or '.join(_PRESETS)}, or a template in Jinja",
        )
    if asked is not None:
        tokenizer.chat_template = _PRESETS.get(asked, asked)
    elif not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    if _default(tokenizer) == CHATML:
        vocabulary = tokenizer.get_vocab()
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [marker for marker in (START, END) if marker not in vocabulary]},
            replace_extra_special_tokens=False,
        )
        tokenizer.eos_token = END


def marker_ids(tokenizer: Any) -> list[int]:
    """The tokens of our own template, which a model that came without a template was never trained on; else none."""
    ours = _default(tokenizer) == CHATML
    return sorted(tokenizer.convert_tokens_to_ids([START, END])) if ours else []


def encode(tokenizer: Any, messages: Messages, generation_prompt: bool = False) -> list[int]:
    """A chat as tokens. generation_prompt: with what makes the assistant speak next."""
    try:
        encoded = tokenizer.apply_chat_template(list(messages), add_generation_prompt=generation_prompt, return_dict=True)
    except Exception as error:  # a template may raise whatever it likes
        raise _unfit(error) from error
    return list(encoded["input_ids"])


def render(tokenizer: Any, messages: Messages, generation_prompt: bool = False) -> str:
    """A chat as the text that is tokenised."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=generation_prompt, tokenize=False))
    except Exception as error:
        raise _unfit(error) from error


class AssistantMask:
    """Which tokens of a chat the assistant says.

    By the marks of the template, where it has some (TRL knows a marked twin of many a template), else by its turns: what the
    chat up to a turn has more than the chat before it. Raises FineTuneError where neither is possible.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = _marked_template(tokenizer) if tokenizer.is_fast else None

    def __call__(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Tokens, and for each whether it is the assistant's."""
        if self._template is None:
            return self._by_turns(messages)
        try:
            encoded = self._tokenizer.apply_chat_template(
                list(messages), chat_template=self._template, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:
            raise _unfit(error) from error
        return list(encoded["input_ids"]), [bool(said) for said in encoded["assistant_masks"]]

    def _by_turns(self, messages: Messages) -> tuple[list[int], list[bool]]:
        ids, whole = encode(self._tokenizer, messages), render(self._tokenizer, messages)
        said = [False] * len(ids)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            parts = ((messages[:turn], True), (messages[: turn + 1], False))
            if not all(whole.startswith(render(self._tokenizer, *part)) for part in parts):
                raise FineTuneError(
                    Reason.CONFIGURATION_ERROR,
                    "spec.sft.assistantOnlyLoss: the model's chat template does not tell what the assistant says; write "
                    "false, or a template with {% generation %} and {% endgeneration %} around it as spec.sft.chatTemplate",
                )
            # Not the number of tokens of the parts: their last may merge with what follows.
            start, end = (common_length(encode(self._tokenizer, *part), ids) for part in parts)
            said[start:end] = [True] * (end - start)
        return ids, said


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right)))


def _default(tokenizer: Any) -> str | None:
    """The template; of several named ones, the one that chats without tools are rendered with."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _marked_template(tokenizer: Any) -> str | None:
    """A template that renders the same and marks what the assistant says; None where there is none."""
    template = _default(tokenizer)
    if template == CHATML:
        return _CHATML_FOR_TRAINING
    if template and _MARKS.search(template):
        return template
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except Exception:  # not one of those that it knows, or one that fails on its trial chats
        return None


def _unfit(error: Exception) -> FineTuneError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FineTuneError(
        Reason.CONFIGURATION_ERROR,
        f"the chat template can't render a chat of the data: {reason[:300]}; change the chat, or write another template as "
        "spec.sft.chatTemplate",
    )
