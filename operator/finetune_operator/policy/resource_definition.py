"""Compares the CustomResourceDefinition in the cluster with that of this operator. Helm or a person may have left an old one."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api import names
from finetune_api.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

# As many fields as people read.
_SHOWN = 5


def missing_fields(published: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the fields of spec and of status that the cluster's schema of a FineTuneJob lacks."""
    spec = _missing(structural_schema(FineTuneJobSpec), _child(published, "spec"), "spec")
    status = _missing(structural_schema(FineTuneJobStatus), _child(published, "status"), "status")
    return list(spec), list(status)


def describe_missing_fields(fields: list[str]) -> str:
    """Return one sentence for people: what the cluster's definition lacks, and what to do."""
    shown, more = ", ".join(fields[:_SHOWN]), f" and {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
    return (
        f"the CustomResourceDefinition {names.PLURAL}.{names.GROUP} in the cluster does not fit this operator: it lacks "
        f"{shown}{more}: upgrade the chart with crds.enabled, or apply the CustomResourceDefinition of this version"
    )


def _child(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    child: Mapping[str, Any] = schema.get("properties", {}).get(name, {})
    return child


def _missing(own: Mapping[str, Any], published: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield the fields that are missing, without those below a missing field."""
    for name, child in own.get("properties", {}).items():
        if name in published.get("properties", {}):
            yield from _missing(child, _child(published, name), f"{path}.{name}")
        else:
            yield f"{path}.{name}"
    for part, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(own.get(part), dict):
            yield from _missing(own[part], published.get(part) or {}, f"{path}{suffix}")
