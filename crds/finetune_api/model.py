"""The base of every model in the contract, and the rules that stand in both the CRD (CEL) and the models."""

from typing import Any

import pydantic
from pydantic.alias_generators import to_camel


class Model(pydantic.BaseModel):
    """Frozen, camelCase outside, strict as the API server: unknown fields and wrong types are refused."""

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
        """The object as YAML and JSON have it: camelCase, without the fields that are unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(rule: str, message: str) -> dict[str, str]:
    """One entry of ``x-kubernetes-validations``; the message says what to write instead."""
    return {"rule": rule, "message": message}


def validations(*rules: dict[str, str]) -> dict[str, Any]:
    """``json_schema_extra`` that carries CEL rules into the CRD."""
    return {"x-kubernetes-validations": list(rules)}
