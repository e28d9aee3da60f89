"""Converts chats to tokens by a template (of the model, of the job, or chatml), and finds the tokens of the assistant."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.reasons import FineTuneError, Reason

START, END = "<|im_start|>", "<|im_end|>"
# With tags around the assistant's text. Only transformers supports these tags, so the saved template does not have them.
_CHATML_WITH_GENERATION_TAGS = (
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
_GENERATION_TAGS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
CHATML = _GENERATION_TAGS.sub("", _CHATML_WITH_GENERATION_TAGS)
_PRESETS = {"chatml": CHATML}

Messages = Sequence[Mapping[str, Any]]


def set_chat_template(tokenizer: Any, requested: str | None) -> None:
    """Set the tokenizer's template: the requested one, else its own, else chatml. A second call changes nothing.

    chatml ends each message with its own token, which becomes the end-of-sequence token. requested: Jinja, or the name of a
    preset; anything else raises FineTuneError.
    """
    if requested is not None and requested not in _PRESETS and "{" not in requested:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.sft.chatTemplate: there is no preset {requested!r}; write {' or '.join(_PRESETS)}, or a template in Jinja",
        )
    if requested is not None:
        tokenizer.chat_template = _PRESETS.get(requested, requested)
    elif not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    if _default_template(tokenizer) == CHATML:
        vocabulary = tokenizer.get_vocab()
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [marker for marker in (START, END) if marker not in vocabulary]},
            replace_extra_special_tokens=False,
        )
        tokenizer.eos_token = END


def marker_ids(tokenizer: Any) -> list[int]:
    """Return the marker tokens of chatml, which are new to a model without a template; empty for other templates."""
    uses_chatml = _default_template(tokenizer) == CHATML
    return sorted(tokenizer.convert_tokens_to_ids([START, END])) if uses_chatml else []


def encode(tokenizer: Any, messages: Messages, generation_prompt: bool = False) -> list[int]:
    """Return a chat as tokens. generation_prompt: whether to add the beginning of an assistant message."""
    try:
        encoded = tokenizer.apply_chat_template(list(messages), add_generation_prompt=generation_prompt, return_dict=True)
    except Exception as error:  # a template may raise any exception
        raise _render_error(error) from error
    return list(encoded["input_ids"])


def render(tokenizer: Any, messages: Messages, generation_prompt: bool = False) -> str:
    """Return a chat as the text that is tokenised."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=generation_prompt, tokenize=False))
    except Exception as error:
        raise _render_error(error) from error


def turn_end_id(tokenizer: Any) -> int | None:
    """Return the special token with which the template ends a message of the assistant; None if there is none.

    It need not be the end-of-sequence token: a base model may have a template that ends messages with a token of its own.
    """
    question = {"role": "user", "content": "1"}
    try:
        one, other = (encode(tokenizer, [question, {"role": "assistant", "content": answer}])[::-1] for answer in ("2", "3"))
    except FineTuneError:  # the template refuses such a chat
        return None
    after_the_answer = one[: common_prefix_length(one, other)][::-1]
    special = {*tokenizer.all_special_ids, *(id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)}
    return next((token for token in after_the_answer if token in special), None)


class AssistantMask:
    """Finds the tokens of the assistant's messages in a chat.

    It uses the generation tags of the template. (TRL has tagged versions of many templates.) Without such tags, it compares the
    chat up to an assistant message with the chat before it. Raises FineTuneError if neither is possible.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = _template_with_generation_tags(tokenizer) if tokenizer.is_fast else None

    def __call__(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Return the tokens, and for each token whether it belongs to a message of the assistant."""
        if self._template is None:
            return self._by_messages(messages)
        try:
            encoded = self._tokenizer.apply_chat_template(
                list(messages), chat_template=self._template, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:
            raise _render_error(error) from error
        return list(encoded["input_ids"]), [bool(mask) for mask in encoded["assistant_masks"]]

    def _by_messages(self, messages: Messages) -> tuple[list[int], list[bool]]:
        ids, whole = encode(self._tokenizer, messages), render(self._tokenizer, messages)
        mask = [False] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            parts = ((messages[:index], True), (messages[: index + 1], False))
            if not all(whole.startswith(render(self._tokenizer, *part)) for part in parts):
                raise FineTuneError(
                    Reason.CONFIGURATION_ERROR,
                    "spec.sft.assistantOnlyLoss: the model's chat template does not mark the assistant's messages; write "
                    "false, or a template with {% generation %} and {% endgeneration %} around them as spec.sft.chatTemplate",
                )
            # The number of tokens of a part is not enough, because its last token may merge with the text that follows.
            start, end = (common_prefix_length(encode(self._tokenizer, *part), ids) for part in parts)
            mask[start:end] = [True] * (end - start)
        return ids, mask


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens both texts have in common at the beginning."""
    return next((at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right)))


def _default_template(tokenizer: Any) -> str | None:
    """Return the template. Of several named templates, return the one for chats without tools."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _template_with_generation_tags(tokenizer: Any) -> str | None:
    """Return a template that renders the same text and tags the assistant's messages; None if there is none."""
    template = _default_template(tokenizer)
    if template == CHATML:
        return _CHATML_WITH_GENERATION_TAGS
    if template and _GENERATION_TAGS.search(template):
        return template
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except Exception:  # TRL does not know the template, or the template fails on TRL's test chats
        return None


def _render_error(error: Exception) -> FineTuneError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FineTuneError(
        Reason.CONFIGURATION_ERROR,
        f"the chat template can't render a chat of the data: {reason[:300]}; change the chat, or write another template as "
        "spec.sft.chatTemplate",
    )
