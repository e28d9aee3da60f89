"""Classes and tags of the data: their names, their order, and labels that are not among them."""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.data.columns import Kind

# Normalised column with the labels, for kinds of rows that have classes.
LABEL_COLUMNS: dict[Kind, str] = {"single": "label", "multi": "labels", "words": "tags"}
_SHOWN = 5


def count_labels(table: pa.Table, column: str) -> collections.Counter[str]:
    """Count how often each label occurs. In lists, each entry counts."""
    values = table[column]
    if pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    return collections.Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})


def resolve_classes(given: Sequence[str] | None, declared: Sequence[Sequence[str] | None], found: Iterable[str]) -> list[str]:
    """Return the names of the classes in their order. Raise FineTuneError for fewer than two.

    given: names in the spec. declared: names that each data set declares. found: labels in all possible training rows.
    """
    names = list(given) if given else order_classes(set(found), declared)
    if len(names) < 2:
        what = f"have the one class {names[0]!r}" if names else "have no class"
        raise FineTuneError(Reason.DATA_ERROR, f"spec.datasets: all rows {what}; a classifier needs at least two")
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"spec.classification.labels: {repeated[0]!r} is there twice; write it once"
        )
    return names


def order_classes(found: set[str], declared: Sequence[Sequence[str] | None]) -> list[str]:
    """Use the declared order if all data sets declare the same. Else sort numbers by value, and then names alphabetically."""
    first = declared[0]
    if first is not None and all(names == first for names in declared) and found <= set(first):
        return list(first)
    return sorted(found, key=lambda name: (0, int(name), "") if re.fullmatch(r"-?\d+", name) else (1, 0, name))


def name_numbers(table: pa.Table, column: str, classes: Sequence[str]) -> pa.Table:
    """Replace label numbers by the names of ``classes`` at these positions: 0 → negative, 1 → positive."""
    names = names_of_numbers(count_labels(table, column), classes)
    if not names:
        return table
    values = table[column].to_pylist()
    if isinstance(values[0], list):
        values = [[names.get(label, label) for label in row] for row in values]
    else:
        values = [names.get(label, label) for label in values]
    return table.set_column(table.column_names.index(column), column, pa.chunked_array([pa.array(values, table[column].type)]))


def names_of_numbers(found: Iterable[str], classes: Sequence[str]) -> Mapping[str, str]:
    """Return the class name for each label number; empty if the labels are names."""
    unknown = set(found) - set(classes)
    names = {str(number): name for number, name in enumerate(classes)}
    return names if unknown and unknown <= names.keys() else {}


def refuse_unknown_labels(counts: Mapping[str, int], classes: Sequence[str], which: str, given: bool) -> None:
    """Raise FineTuneError for labels that are not classes. which: training or evaluation. given: the spec lists the classes."""
    unknown = sorted(set(counts) - set(classes))
    if not unknown:
        return
    listed = ", ".join(f"{name!r} ({counts[name]:,})" for name in unknown[:_SHOWN]) + (", …" if len(unknown) > _SHOWN else "")
    if given:
        raise FineTuneError(
            Reason.DATA_ERROR,
            f"spec.classification.labels: the {which} data has classes that are not in it: {listed}; "
            "add them, or remove the rows",
        )
    raise FineTuneError(
        Reason.DATA_ERROR,
        f"spec.datasets: the {which} data has classes that the training data lacks: {listed}; correct or remove these rows, or "
        "list all classes in spec.classification.labels",
    )
