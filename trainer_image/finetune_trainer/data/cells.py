"""Converts a cell of the data to the value that a task gets. Raises SkippedRow to leave the row out, ValueError to refuse it."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Of tags in one cell of a table, in order of preference: a comma is part of a name more often than the others are.
SEPARATORS = ("|", ";", ",")
_ROLES = ("system", "developer", "user", "assistant", "tool")


class MissingLabelError(ValueError):
    """The row has no label. The user gets the number of such rows, and where the first of them are."""


class SkippedRow(Exception):  # noqa: N818 - not an error: the row is left out, and counted by this reason
    """The model can't learn anything from the row."""


Convert = Callable[[Any, Sequence[str] | None], Any]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())


def is_list(value: Any) -> bool:
    """Return whether the value is a list, or text that looks like a JSON list, as in tables."""
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"))


def choose_separator(cells: Iterable[Any]) -> str:
    """Return the character that separates tags in the cells of a table. Lists, and JSON in cells, need none."""
    texts = [cell for cell in cells if isinstance(cell, str) and not cell.lstrip().startswith("[")]
    return next((separator for separator in SEPARATORS if any(separator in text for text in texts)), ",")


def load_json(text: str) -> Any:
    """Parse JSON and replace lone surrogates by the replacement character, because UTF-8 files can't hold them.

    A text that was cut within an emoji has a lone surrogate. Raises JSONDecodeError.
    """
    value = json.loads(text)
    if "\\ud" not in text and "\\uD" not in text:
        return value
    whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return json.loads(whole)


def _parse(value: Any, example: str) -> list[Any]:
    """Return a list. Tables hold it as JSON. example: a valid list, for the error."""
    if isinstance(value, str):
        try:
            value = load_json(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not valid JSON ({error.msg}, character {error.pos + 1}); write it as {example}") from None
    if not isinstance(value, list):
        raise ValueError(f"is not a list; write it as {example}")
    return value


def text(value: Any, _: Sequence[str] | None = None) -> str:
    """Return a text that has more than white space."""
    if _missing(value):
        raise SkippedRow("no text")
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"is a {type(value).__name__}; a text is needed")


def second_text(value: Any, _: Sequence[str] | None = None) -> str:
    """Return the second text of a pair, which may be empty."""
    return "" if _missing(value) else text(value)


def class_name(value: Any, names: Sequence[str] | None = None) -> str:
    """Return one class. names: the names of class numbers, if the data declares them. 1.0 is class 1."""
    if _missing(value) or (isinstance(value, str) and value.strip().lower() == "nan"):
        raise MissingLabelError("has no class; give it one or remove the row")
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise ValueError(f"has no class ({value}); give it one or remove the row")
        return names[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise ValueError(f"has no class but a {type(value).__name__}; write a name or a number")


def class_list(value: Any, names: Sequence[str] | None = None, separator: str = ",") -> list[str]:
    """Return any number of classes, without duplicates. Tables hold a JSON list, or names with a separator."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise MissingLabelError("has no list of classes; write [] where none fits")
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = [part for part in value.split(separator) if part.strip()]
    elif not isinstance(value, str | list):
        value = [value]
    return list(dict.fromkeys(class_name(entry, names) for entry in _parse(value, '["news", "sports"]')))


def number(value: Any, _: Sequence[str] | None = None) -> float:
    """Return a finite number."""
    try:
        found = math.nan if _missing(value) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"is not a number ({str(value)[:80]!r}); a regression needs one in each row") from None
    if not math.isfinite(found):
        raise (MissingLabelError if _missing(value) else ValueError)("has no number; give it one or remove the row")
    return found


def words(value: Any, _: Sequence[str] | None = None) -> list[str]:
    """Return the words of a sentence."""
    if _missing(value) or not (found := _parse(value, '["A", "sentence"]')):
        raise SkippedRow("no words")
    return [str(word) for word in found]


def tags(value: Any, names: Sequence[str] | None = None) -> list[str]:
    """Return the tags of a sentence's words."""
    if _missing(value):
        raise MissingLabelError('has no tags; write one for each word, as ["O", "B-PER"]')
    return [class_name(tag, names) for tag in _parse(value, '["O", "B-PER"]')]


# Parts of a message that are not text. Without them, the model would learn to answer nothing when it should call a tool.
_CALLS = ("tool_calls", "function_call")


def messages(value: Any, _: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Return a chat as messages with role and content."""
    example = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
    if _missing(value) or not (found := _parse(value, example)):
        raise SkippedRow("no messages")
    for message in found:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            other = " (it has from and value, as in ShareGPT)" if isinstance(message, dict) and "from" in message else ""
            raise ValueError(f"has a message without role and content{other}; write it as {example}")
        if message["role"] not in _ROLES:
            raise ValueError(f"has a message of the role {message['role'][:40]!r}; write one of: {', '.join(_ROLES)}")
        if called := next((name for name in _CALLS if message.get(name)), None):
            raise ValueError(f"has a message with {called}: tool calls can't be trained on; write texts, or remove the row")
        if not isinstance(message.get("content"), str):
            raise ValueError("has a message whose content is not text; write a text, or remove the row")
    return [{"role": message["role"], "content": message["content"]} for message in found]


def text_or_messages(value: Any, _: Sequence[str] | None = None) -> str | list[dict[str, str]]:
    """Return a chat if the value is a list of messages (JSON in tables), else a text."""
    if isinstance(value, list) or (isinstance(value, str) and value.startswith('[{"role"')):
        return messages(value)
    return text(value)
