"""The base class of every model in the contract, and helpers that write CEL rules into the CRD."""

from typing import Any

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


def cel(rule: str, message: str) -> dict[str, str]:
    """Return one entry of ``x-kubernetes-validations``. The message says what to write instead."""
    return {"rule": rule, "message": message}


def validations(*rules: dict[str, str]) -> dict[str, Any]:
    """Return the ``json_schema_extra`` that writes CEL rules into the CRD."""
    return {"x-kubernetes-validations": list(rules)}
