"""One cell of the data → the value that a task gets. Blank: leave the row out. ValueError: refuse it, with what to do."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

_ROLES = ("system", "developer", "user", "assistant", "tool")


class Blank(Exception):  # noqa: N818 - no error: a row that is left out, and counted by this reason
    """The row has nothing to learn from."""


Convert = Callable[[Any, Sequence[str] | None], Any]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())


def is_list(value: Any) -> bool:
    """Whether it is a list, or in a table the JSON of one."""
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"))


def load_json(text: str) -> Any:
    """The value; half a surrogate pair, which is no character and which no file can hold, becomes the sign for one that is lost.

    Raises JSONDecodeError. Texts that were cut within an emoji have such halves.
    """
    value = json.loads(text)
    if "\\ud" not in text and "\\uD" not in text:
        return value
    whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return json.loads(whole)


def _parse(value: Any, example: str) -> list[Any]:
    """A list, which tables hold as JSON."""
    if isinstance(value, str):
        try:
            value = load_json(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"is no JSON ({error.msg}, character {error.pos + 1}); write it as {example}") from None
    if not isinstance(value, list):
        raise ValueError(f"is no list; write it as {example}")
    return value


def text(value: Any, _: Sequence[str] | None = None) -> str:
    """A text with more than blanks in it."""
    if _missing(value):
        raise Blank("no text")
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"is a {type(value).__name__}; a text is needed")


def second_text(value: Any, _: Sequence[str] | None = None) -> str:
    """The other text of a pair, which may be empty."""
    return "" if _missing(value) else text(value)


def class_name(value: Any, names: Sequence[str] | None = None) -> str:
    """One class. names: of the numbers, where the data declares them. A whole number keeps no decimals: 1.0 is class 1."""
    if _missing(value) or (isinstance(value, str) and value.strip().lower() == "nan"):
        raise ValueError("has no class; give it one or remove the row")
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise ValueError(f"has no class ({value}); give it one or remove the row")
        return names[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise ValueError(f"has no class but a {type(value).__name__}; write a name or a number")


def class_list(value: Any, names: Sequence[str] | None = None) -> list[str]:
    """Any number of classes, each once; in tables a JSON list, or names with commas between them."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("has no list of classes; write [] where none fits")
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = [part for part in value.split(",") if part.strip()]
    elif not isinstance(value, str | list):
        value = [value]
    return list(dict.fromkeys(class_name(entry, names) for entry in _parse(value, '["news", "sports"]')))


def number(value: Any, _: Sequence[str] | None = None) -> float:
    """A finite number."""
    try:
        found = math.nan if _missing(value) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"is no number ({str(value)[:80]!r}); a regression needs one in each row") from None
    if not math.isfinite(found):
        raise ValueError("has no number; give it one or remove the row")
    return found


def words(value: Any, _: Sequence[str] | None = None) -> list[str]:
    """The words of a sentence."""
    if _missing(value) or not (found := _parse(value, '["A", "sentence"]')):
        raise Blank("no words")
    return [str(word) for word in found]


def tags(value: Any, names: Sequence[str] | None = None) -> list[str]:
    """The tags of a sentence's words."""
    if _missing(value):
        raise ValueError('has no tags; write one for each word, as ["O", "B-PER"]')
    return [class_name(tag, names) for tag in _parse(value, '["O", "B-PER"]')]


# What a chat has beside texts: left out, the model would learn to answer nothing where it should call a tool.
_CALLS = ("tool_calls", "function_call")


def messages(value: Any, _: Sequence[str] | None = None) -> list[dict[str, str]]:
    """A chat."""
    example = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
    if _missing(value) or not (found := _parse(value, example)):
        raise Blank("no messages")
    for message in found:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"has a message without role and content; write it as {example}")
        if message["role"] not in _ROLES:
            raise ValueError(f"has a message of the role {message['role'][:40]!r}; write one of: {', '.join(_ROLES)}")
        if called := next((name for name in _CALLS if message.get(name)), None):
            raise ValueError(f"has a message with {called}: calls of tools can't be trained on; write texts, or remove the row")
        if not isinstance(message.get("content"), str):
            raise ValueError("has a message whose content is no text; write a text, or remove the row")
    return [{"role": message["role"], "content": message["content"]} for message in found]


def text_or_messages(value: Any, _: Sequence[str] | None = None) -> str | list[dict[str, str]]:
    """A text, or a chat where there is a list of messages (in tables as JSON)."""
    if isinstance(value, list) or (isinstance(value, str) and value.startswith('[{"role"')):
        return messages(value)
    return text(value)
