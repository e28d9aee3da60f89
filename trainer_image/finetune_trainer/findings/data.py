"""Findings about the data. They are known before the first step."""

from collections.abc import Iterator

from finetune_api.findings import (
    CUT_SHARE,
    DISAGREEING_SHARE,
    GOOD_METRIC,
    LEFT_OUT_SHARE,
    MIN_SHARE_OF_STEPS,
    RARE_CLASS_ROWS,
    SHARED_SHARE,
    FindingType,
)
from finetune_trainer.findings.record import Found, Record

_CLASSIFIERS = ("text-classification", "token-classification")
_LEAVE_OUT_ROWS = ("sft", "dpo", "masked-lm")  # tasks that leave out a row without a token to learn
_CLASSES_NAMED = 3


def held_out_rows(record: Record) -> Iterator[Found]:
    """Find held-out rows that are trained on."""
    data = record.data
    if data.shared and data.shared >= SHARED_SHARE * data.evaluation_rows:
        share = data.shared / data.evaluation_rows
        text = f"{data.shared:,} of {data.evaluation_rows:,} held-out rows ({share:.0%}) are also training rows"
        yield FindingType.HELD_OUT_ROWS_TRAINED_ON, text


def left_out_rows(record: Record) -> Iterator[Found]:
    """Find rows that were read and left out, and training rows without anything to learn."""
    data = record.data
    skipped = sum(data.skipped.values())
    if skipped and skipped >= LEFT_OUT_SHARE * data.read:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in data.skipped.items())
        yield FindingType.ROWS_LEFT_OUT, f"{skipped:,} of {data.read:,} rows are left out ({reasons})"
    # A text may also become several rows, which hides those that are left out.
    lost = data.train_rows - data.lengths.rows if data.lengths is not None and record.task in _LEAVE_OUT_ROWS else 0
    if lost > 0 and lost >= LEFT_OUT_SHARE * data.train_rows:
        yield FindingType.NOTHING_TO_LEARN, f"{lost:,} of {data.train_rows:,} training rows have no token to learn"


def labels(record: Record) -> Iterator[Found]:
    """Find labels that disagree on the same text, and classes with next to no rows."""
    data = record.data
    if data.disagreeing and data.disagreeing >= DISAGREEING_SHARE * data.train_rows:
        text = f"{data.disagreeing:,} of {data.train_rows:,} training rows have a text that another row has with another label"
        yield FindingType.LABELS_DISAGREE, text
    rare = {name: count for name, count in data.classes.items() if count < RARE_CLASS_ROWS}
    if rare and record.task == "text-classification" and not data.streaming:
        named = ", ".join(f"{name} has {count}" for name, count in list(rare.items())[:_CLASSES_NAMED])
        more = f" and {len(rare) - _CLASSES_NAMED} more classes are as rare" if len(rare) > _CLASSES_NAMED else ""
        yield FindingType.RARE_CLASS, f"of {data.train_rows:,} training rows, {named}{more}"


def cut_rows(record: Record) -> Iterator[Found]:
    """Find rows that are cut, unless a classifier is good enough with the beginning of its texts."""
    lengths = record.data.lengths
    if lengths is None or lengths.cut < CUT_SHARE * lengths.rows:
        return
    if record.task in _CLASSIFIERS and record.total_steps:
        metrics = record.last.metrics if record.last is not None else {}
        name = next((name for name in ("f1", "microF1", "accuracy") if name in metrics), None)
        if record.share_of_steps < MIN_SHARE_OF_STEPS or name is None or metrics[name] >= GOOD_METRIC:
            return
    share = lengths.cut / lengths.rows
    text = f"{lengths.cut:,} of {lengths.rows:,} training rows ({share:.0%}) are cut at {lengths.limit:,} tokens"
    yield FindingType.ROWS_CUT, text


CHECKS = (held_out_rows, left_out_rows, labels, cut_rows)
