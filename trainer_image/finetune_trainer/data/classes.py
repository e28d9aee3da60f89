"""Classes and tags of the data: their names, their order, and labels that are none of them."""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer.data.columns import Kind

# Our column that holds the labels, for kinds of rows that have classes.
COLUMNS: dict[Kind, str] = {"single": "label", "multi": "labels", "words": "tags"}
_SHOWN = 5


def count_labels(table: pa.Table, column: str) -> collections.Counter[str]:
    """How often each label occurs; of lists each entry counts."""
    values = table[column]
    if pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    return collections.Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})


def settle_classes(given: Sequence[str] | None, declared: Sequence[Sequence[str] | None], found: Iterable[str]) -> list[str]:
    """Names of the classes in their order. Raises FineTuneError for fewer than two.

    given: by the spec. declared: by each data set. found: in all rows that could be trained on.
    """
    names = list(given) if given else order_classes(set(found), declared)
    if len(names) < 2:
        what = f"have the one class {names[0]!r}" if names else "have no class"
        raise FineTuneError(Reason.DATA_ERROR, f"spec.datasets: all rows {what}; a classifier needs two at least")
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR, f"spec.classification.labels: {repeated[0]!r} is there twice; write it once"
        )
    return names


def order_classes(found: set[str], declared: Sequence[Sequence[str] | None]) -> list[str]:
    """As declared where all data sets declare the same, else numbers by value and names by alphabet."""
    first = declared[0]
    if first is not None and all(names == first for names in declared) and found <= set(first):
        return list(first)
    return sorted(found, key=lambda name: (0, int(name), "") if re.fullmatch(r"-?\d+", name) else (1, 0, name))


def name_numbers(table: pa.Table, column: str, classes: Sequence[str]) -> pa.Table:
    """Labels that are numbers get the name at that place, where ``classes`` are names: 0 and 1 of [negative, positive]."""
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
    """The name for each number, where the labels that are found are numbers; empty where they are names."""
    unknown = set(found) - set(classes)
    names = {str(number): name for number, name in enumerate(classes)}
    return names if unknown and unknown <= names.keys() else {}


def refuse_unknown(counts: Mapping[str, int], classes: Sequence[str], which: str, given: bool) -> None:
    """Raise FineTuneError where there are labels that are no classes. which: of the two sets. given: classes by the spec."""
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
