"""Columns as the tasks want them: text, text_pair and label, all of them strings."""

import logging

import datasets

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Dataset as DatasetSpec

log = logging.getLogger(__name__)


def declared_classes(rows: datasets.Dataset, spec: DatasetSpec) -> list[str] | None:
    """Class names that the data set itself declares, in its order."""
    feature = rows.features.get(spec.columns.label)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def normalise(rows: datasets.Dataset, spec: DatasetSpec, field: str, split: str) -> datasets.Dataset:
    """Rename and convert; rows with an empty text are left out and counted. Raises FineTuneError for what is missing."""
    wanted = {"text": spec.columns.text, "label": spec.columns.label}
    if spec.columns.text_pair:
        wanted["text_pair"] = spec.columns.text_pair
    for target, source in wanted.items():
        if source not in rows.column_names:
            name = {"text": "text", "label": "label", "text_pair": "textPair"}[target]
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{field}.columns.{name}: the data has no column {source!r}; write one of: {', '.join(rows.column_names)}",
            )
    class_names = declared_classes(rows, spec)
    columns = {target: rows[source][:] for target, source in wanted.items()}
    kept = [row for row, text in enumerate(columns["text"]) if isinstance(text, str) and text.strip()]
    if len(kept) < len(rows):
        log.info("%s: %d of %d rows of split %r have no text and are left out", field, len(rows) - len(kept), len(rows), split)
    if not kept:
        raise FineTuneError(
            Reason.DATA_ERROR,
            f"{field}.columns.text: no row of split {split!r} has a text in column {spec.columns.text!r}",
        )
    result = {"text": [columns["text"][row] for row in kept]}
    result["label"] = [_label(columns["label"][row], class_names, f"{field}.columns.label", row) for row in kept]
    if "text_pair" in columns:
        result["text_pair"] = [str(columns["text_pair"][row] or "") for row in kept]
    return datasets.Dataset.from_dict(result)


def _label(value: object, class_names: list[str] | None, field: str, row: int) -> str:
    """One label as text; a whole number keeps no decimals, as tables with gaps read 1 as 1.0."""
    if class_names is not None and isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | bool) and str(value).strip() and value != -1:
        return str(value).strip()
    raise FineTuneError(Reason.DATA_ERROR, f"{field}: row {row + 1} has no class ({value!r}); give it one or remove the row")


def order_classes(found: set[str], declared: list[list[str] | None]) -> list[str]:
    """Order of the classes: as declared where all data sets declare the same, else numbers by value and names by alphabet."""
    first = declared[0]
    if first is not None and all(names == first for names in declared):
        return first
    return sorted(found, key=lambda name: (0, int(name), "") if name.lstrip("-").isdigit() else (1, 0, name))
