"""Chunks of any data → tables with the columns of the task, as `Task.encode` gets them."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic.alias_generators import to_camel

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.data import cells
from finetune_trainer.data.cells import Blank, Convert
from finetune_trainer.data.columns import Kind, Wanted
from finetune_trainer.data.readers import Chunk
from finetune_trainer.data.report import Tally

_ID_COLUMNS = ("id", "_id", "guid", "uid", "uuid")
_CONVERT: dict[str, Convert] = {
    "text": cells.text, "text_pair": cells.second_text, "label": cells.class_name, "labels": cells.class_list,
    "tokens": cells.words, "tags": cells.tags, "prompt": cells.text, "completion": cells.text, "messages": cells.messages,
}  # fmt: skip
_OF_KIND: dict[Kind, dict[str, Convert]] = {
    "regression": {"label": cells.number},
    "preference": dict.fromkeys(("prompt", "chosen", "rejected"), cells.text_or_messages),
}
_TEXT = pa.large_string()  # a column may be longer than the 2 GiB of an ordinary one
_Chat = list[dict[str, str]]
_MESSAGES = pa.large_list(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_TYPES = {"labels": pa.large_list(_TEXT), "tokens": pa.large_list(_TEXT), "tags": pa.large_list(_TEXT), "messages": _MESSAGES}

Row = dict[str, Any]


def normalise(chunks: Iterable[Chunk], wanted: Wanted, split: str, tally: Tally) -> pa.Table:
    """All rows that can be learned from. Raises FineTuneError with the row's place for what is neither right nor empty."""
    batches, ids, shapes = [], list[int](), set[type]()
    for chunk in chunks:
        tally.read[split] += len(chunk)
        for name in _ID_COLUMNS:
            ids += [hash(str(value)) for value in chunk.columns.get(name, ()) if value is not None]
        rows = list(rows_of(chunk, wanted, tally.left_out))
        shapes |= {type(row["prompt"]) for row in rows} if wanted.kind == "preference" else set()
        if len(shapes) > 1:
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{wanted.field}: some rows of split {split!r} are texts and some are messages; write all alike",
            )
        if rows:
            batches.append(_to_arrow(rows))
    if len(set(ids)) < len(ids):
        tally.notes[f"rows of {split} with an id that another row has"] += len(ids) - len(set(ids))
    if not batches:
        raise FineTuneError(
            Reason.DATA_ERROR,
            f"{wanted.field}.columns.{to_camel(next(iter(wanted.columns)))}: no row of split {split!r} has a text in column "
            f"{next(iter(wanted.columns.values()))!r}",
        )
    return pa.Table.from_batches(batches)


def rows_of(chunk: Chunk, wanted: Wanted, left_out: collections.Counter[str]) -> Iterator[Row]:
    """Rows of one chunk that can be learned from; the others are counted by reason. Raises as normalise() does."""
    columns = wanted.select(chunk)
    converters = {**_CONVERT, **_OF_KIND.get(wanted.kind, {})}
    plan = [(name, converters[name], columns[name], chunk.classes.get(wanted.columns[name])) for name in columns]
    check = _CHECKS.get(wanted.kind)
    for index in range(len(chunk)):
        name = ""
        try:
            row = {}
            for name, convert, values, classes in plan:
                row[name] = convert(values[index], classes)
            yield check(row) if check else row
        except Blank as reason:
            left_out[str(reason)] += 1
        except ValueError as error:
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{wanted.field}.columns.{to_camel(name)}: {chunk.place(index)}, column {wanted.columns[name]!r}: "
                f"the row {error}",
            ) from None


def _to_arrow(rows: Sequence[Row]) -> pa.RecordBatch:
    """All rows have the same columns, and in each the same type."""
    arrays = {}
    for name, first in rows[0].items():
        type_ = _TYPES.get(name) or (
            pa.float64() if isinstance(first, float) else _MESSAGES if isinstance(first, list) else _TEXT
        )
        arrays[name] = pa.array([row[name] for row in rows], type_)
    return pa.record_batch(arrays)


def _same_length(row: Row) -> Row:
    if len(row["tokens"]) != len(row["tags"]):
        raise ValueError(f"has {len(row['tags'])} tags for {len(row['tokens'])} words; write one for each")
    return row


def _preference(row: Row) -> Row:
    """Prompt and two answers, all texts or all chats.

    Where there is no prompt it is what both answers begin with. Chats may begin with the prompt that is there, too; a text is
    left as it is, as "Hi" may well be answered by "Hi! How are you?".
    """
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise ValueError("has one answer as a text and one as messages; write both alike")
    if isinstance(chosen, str):
        if isinstance(prompt, list):
            raise ValueError("has its prompt as messages and its answers as texts; write all alike")
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected} if prompt else _split_texts(chosen, rejected)
    if isinstance(prompt, list):
        chosen, rejected = _without_prompt(prompt, chosen, rejected)
    else:
        shared = _shared(chosen, rejected)
        if not shared and not prompt:
            raise ValueError("has no prompt, and its answers do not begin alike; name its column in columns.prompt")
        prompt = chosen[:shared] or [{"role": "user", "content": prompt}]
        chosen, rejected = chosen[shared:], rejected[shared:]
    if not chosen or not rejected:
        raise Blank("an answer is empty")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _without_prompt(prompt: _Chat, chosen: _Chat, rejected: _Chat) -> tuple[_Chat, _Chat]:
    """The answers, also where they are chats that begin with the prompt; it would be learned twice."""
    size = len(prompt)
    if all(len(answer) > size and answer[:size] == prompt for answer in (chosen, rejected)):
        return chosen[size:], rejected[size:]
    return chosen, rejected


def _split_texts(chosen: str, rejected: str) -> Row:
    shared = _shared(chosen, rejected)
    shared = chosen.rfind(" ", 0, shared) if shared > 0 else 0  # not within a word; the blank belongs to the answer
    if shared <= 0:
        raise ValueError("has no prompt, and its answers do not begin alike; name its column in columns.prompt")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many elements both begin with; each keeps one at least."""
    pairs = zip(first[:-1], second[:-1], strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)) - 1)


_CHECKS: Mapping[Kind, Callable[[Row], Row]] = {"words": _same_length, "preference": _preference}
