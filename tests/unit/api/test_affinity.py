"""The affinity of a job has every field of Kubernetes' own."""

import types
import typing
from collections.abc import Iterator
from typing import Any

import pydantic
from kubernetes import client

from finetune_api.spec.affinity import Affinity
from unit.api.cases import AFFINITY


def fields_of_kubernetes(kind: str, path: str = "") -> Iterator[str]:
    """Yield the path of every field of a type of the Kubernetes client."""
    model = getattr(client, kind, None)
    for name, alias in getattr(model, "attribute_map", {}).items():
        yield f"{path}{alias}"
        inner = model.openapi_types[name].removeprefix("List[").removesuffix("]")
        yield from fields_of_kubernetes(inner, f"{path}{alias}.")


def fields_of(model: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every field of a model."""
    for field in model.model_fields.values():
        yield f"{path}{field.alias}"
        for inner in models_in(field.annotation):
            yield from fields_of(inner, f"{path}{field.alias}.")


def models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, pydantic.BaseModel)
    ):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def test_no_field_of_kubernetes_is_missing_or_invented() -> None:
    theirs = set(fields_of_kubernetes("V1Affinity"))
    assert len(theirs) > 50
    assert set(fields_of(Affinity)) == theirs


def test_pods_get_the_affinity_as_it_was_written() -> None:
    assert Affinity.model_validate(AFFINITY).to_wire() == AFFINITY
