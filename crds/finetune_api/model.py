"""The base class of every model in the contract, and helpers that write CEL rules into the CRD."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic
from pydantic.alias_generators import to_camel


class Model(pydantic.BaseModel):
    """Base model: frozen, camelCase in YAML and JSON. Rejects unknown fields and wrong types, as the API server does."""

    model_config = pydantic.ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=False,
        allow_inf_nan=False,
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the object as YAML and JSON hold it: camelCase, without unset fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


M = TypeVar("M", bound=Model)


def parse_known(model: type[M], value: Mapping[str, Any]) -> M:
    """Parse what this version knows of an object that another version may have written.

    Ignores unknown fields. Leaves out each invalid value, and each block that then lacks a required field. Raises ValidationError
    if the object itself lacks one.
    """
    known = copy.deepcopy(dict(value))
    while True:
        try:
            return model.model_validate(known, extra="ignore", by_alias=True, by_name=False)
        except pydantic.ValidationError as error:
            item = error.errors(include_url=False, include_input=False, include_context=False)[0]
            path = item["loc"][:-1] if item["type"] == "missing" else item["loc"]
            if not path:
                raise
            _remove(known, path)


def _remove(value: dict[str, Any], path: tuple[str | int, ...]) -> None:
    node: Any = value
    try:
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]
    except (KeyError, IndexError, TypeError):  # the path of a union or of a key is not that of a value
        del value[str(path[0])]


def cel(rule: str, message: str) -> dict[str, str]:
    """Return one entry of ``x-kubernetes-validations``. The message says what to write instead."""
    return {"rule": rule, "message": message}


def validations(*rules: dict[str, str]) -> dict[str, Any]:
    """Return the ``json_schema_extra`` that writes CEL rules into the CRD."""
    return {"x-kubernetes-validations": list(rules)}
