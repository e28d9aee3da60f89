"""Converts chunks of any data to tables with the columns that `Task.encode` gets."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic.alias_generators import to_camel

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.data import cells
from finetune_trainer.data.cells import Convert, MissingLabelError, SkippedRow
from finetune_trainer.data.columns import ColumnMapping, Kind
from finetune_trainer.data.readers import Chunk
from finetune_trainer.data.report import ReadCounts

_SHOWN = 5  # rows without a label that an error names
_NO_LABEL = {"labels": "[] where none fits, "}
_ID_COLUMNS = ("id", "_id", "guid", "uid", "uuid")
_CONVERT: dict[str, Convert] = {
    "text": cells.text, "text_pair": cells.second_text, "label": cells.class_name, "labels": cells.class_list,
    "tokens": cells.words, "tags": cells.tags, "prompt": cells.text, "completion": cells.text, "messages": cells.messages,
}  # fmt: skip
_OF_KIND: dict[Kind, dict[str, Convert]] = {
    "regression": {"label": cells.number},
    "preference": dict.fromkeys(("prompt", "chosen", "rejected"), cells.text_or_messages),
}
_TEXT = pa.large_string()  # a column may exceed the 2 GiB limit of an ordinary string column
_Chat = list[dict[str, str]]
_MESSAGES = pa.large_list(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_TYPES = {"labels": pa.large_list(_TEXT), "tokens": pa.large_list(_TEXT), "tags": pa.large_list(_TEXT), "messages": _MESSAGES}

Row = dict[str, Any]


def normalise(chunks: Iterable[Chunk], mapping: ColumnMapping, split: str, read_counts: ReadCounts) -> pa.Table:
    """Return all usable rows. Empty rows are left out; for a wrong row, raise FineTuneError that names its location."""
    batches, ids, shapes, unlabelled = [], list[int](), set[type](), list[str]()
    for chunk in chunks:
        read_counts.read[split] += len(chunk)
        for name in _ID_COLUMNS:
            ids += [hash(str(value)) for value in chunk.columns.get(name, ()) if value is not None]
        rows = list(normalise_rows(chunk, mapping, read_counts.skipped, unlabelled))
        shapes |= {type(row["prompt"]) for row in rows} if mapping.kind == "preference" else set()
        if len(shapes) > 1:
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{mapping.field}: some rows of split {split!r} are texts and some are messages; write one kind in all",
            )
        if rows:
            batches.append(_to_arrow(rows))
    if unlabelled:
        raise _unlabelled_error(unlabelled, mapping)
    if len(set(ids)) < len(ids):
        read_counts.notes[f"rows of {split} with an id that another row has"] += len(ids) - len(set(ids))
    if not batches:
        raise FineTuneError(
            Reason.DATA_ERROR,
            f"{mapping.field}.columns.{to_camel(next(iter(mapping.columns)))}: no row of split {split!r} can be used: column "
            f"{next(iter(mapping.columns.values()))!r} has {' and '.join(read_counts.skipped) or 'no rows'}",
        )
    return pa.Table.from_batches(batches)


def normalise_rows(
    chunk: Chunk, mapping: ColumnMapping, skipped: collections.Counter[str], unlabelled: list[str] | None = None
) -> Iterator[Row]:
    """Yield the usable rows of one chunk, and count the others by reason. Raise the same errors as normalise().

    unlabelled: collects the locations of rows without a label. If it is None, such a row is an error at once.
    """
    columns = mapping.select(chunk)
    converters: dict[str, Convert] = {**_CONVERT, **_OF_KIND.get(mapping.kind, {})}
    converters["labels"] = functools.partial(cells.class_list, separator=mapping.separator)
    plan = [(name, converters[name], columns[name], chunk.classes.get(mapping.columns[name])) for name in columns]
    check = _CHECKS.get(mapping.kind)
    for index in range(len(chunk)):
        name = ""
        try:
            row = {}
            for name, convert, values, classes in plan:
                row[name] = convert(values[index], classes)
            yield check(row) if check else row
        except SkippedRow as reason:
            skipped[str(reason)] += 1
        except ValueError as error:
            if unlabelled is not None and isinstance(error, MissingLabelError):
                unlabelled.append(chunk.location(index))
                continue
            raise FineTuneError(
                Reason.DATA_ERROR,
                f"{mapping.field}.columns.{to_camel(name)}: {chunk.location(index)}, column {mapping.columns[name]!r}: "
                f"the row {error}",
            ) from None


def _unlabelled_error(locations: Sequence[str], mapping: ColumnMapping) -> FineTuneError:
    """Return the error for rows without a label: how many there are, and where the first of them are."""
    name = next(name for name in ("label", "labels", "tags") if name in mapping.columns)
    shown = "; ".join(locations[:_SHOWN]) + ("; …" if len(locations) > _SHOWN else "")
    rows = "1 row has no label" if len(locations) == 1 else f"{len(locations):,} rows have no label"
    return FineTuneError(
        Reason.DATA_ERROR,
        f"{mapping.field}.columns.{name}: column {mapping.columns[name]!r}: {rows} ({shown}); give each row one, "
        f"{_NO_LABEL.get(name, '')}or remove these rows",
    )


def _to_arrow(rows: Sequence[Row]) -> pa.RecordBatch:
    """Convert rows to Arrow. All rows have the same columns, with the same types."""
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


def _with_answer(row: Row) -> Row:
    """Return a chat; one without an answer has nothing to learn."""
    if not any(message["role"] == "assistant" for message in row["messages"]):
        raise SkippedRow("no message of the role assistant")
    return row


def _preference(row: Row) -> Row:
    """Return a prompt and two answers: all texts or all chats.

    Without a prompt, the common beginning of both answers becomes the prompt. Answers that are chats may repeat a given prompt,
    which is then removed. Answers that are texts are not changed, because "Hi! How are you?" can be a real answer to "Hi".
    """
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise ValueError("has one answer as a text and one as messages; write one kind in both")
    if isinstance(chosen, str):
        if isinstance(prompt, list):
            raise ValueError("has its prompt as messages and its answers as texts; write one kind in all")
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected} if prompt else _split_texts(chosen, rejected)
    if isinstance(prompt, list):
        chosen, rejected = _without_prompt(prompt, chosen, rejected)
    else:
        shared = _common_prefix_length(chosen, rejected)
        if not shared and not prompt:
            raise ValueError("has no prompt, and its answers do not begin alike; name the prompt's column in columns.prompt")
        prompt = chosen[:shared] or [{"role": "user", "content": prompt}]
        chosen, rejected = chosen[shared:], rejected[shared:]
    if not chosen or not rejected:
        raise SkippedRow("an answer is empty")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _without_prompt(prompt: _Chat, chosen: _Chat, rejected: _Chat) -> tuple[_Chat, _Chat]:
    """Remove the prompt from the beginning of the answers if both repeat it, because it would be learned twice."""
    size = len(prompt)
    if all(len(answer) > size and answer[:size] == prompt for answer in (chosen, rejected)):
        return chosen[size:], rejected[size:]
    return chosen, rejected


def _split_texts(chosen: str, rejected: str) -> Row:
    shared = _common_prefix_length(chosen, rejected)
    shared = chosen.rfind(" ", 0, shared) if shared > 0 else 0  # not within a word; the space belongs to the answer
    if shared <= 0:
        raise ValueError("has no prompt, and its answers do not begin alike; name the prompt's column in columns.prompt")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the length of the common prefix. At least one element of each sequence stays outside of it."""
    pairs = zip(first[:-1], second[:-1], strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)) - 1)


_CHECKS: Mapping[Kind, Callable[[Row], Row]] = {"words": _same_length, "messages": _with_answer, "preference": _preference}
