"""What the generated texts for people and editors have in common: a walk over the CRD's schema, with what it can't hold."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from finetune_api import crd
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

Schema = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FieldSchema:
    """A field of the resource. path: for example spec.datasets[].hub.name. node: its part of the CRD's schema."""

    path: str
    node: Schema
    required: bool

    @property
    def rules(self) -> list[str]:
        """Sentences of the rules about what a file may hold."""
        return self._sentences(on_change=False)

    @property
    def rules_on_change(self) -> list[str]:
        """Sentences of the rules about what may be changed."""
        return self._sentences(on_change=True)

    def _sentences(self, on_change: bool) -> list[str]:
        rules = self.node.get("x-kubernetes-validations", ())
        return [rule["message"] for rule in rules if ("oldSelf" in rule["rule"]) == on_change]


def resource_schema() -> Schema:
    """The schema of the whole resource, as the CRD has it, with the ``examples`` and every ``enum`` of the models."""
    [version] = crd.custom_resource_definition()["spec"]["versions"]
    root: Schema = version["schema"]["openAPIV3Schema"]
    more: dict[str, Schema] = {}
    for name, model in (("spec", FineTuneJobSpec), ("status", FineTuneJobStatus)):
        more |= _more(model, name)
    return _with_more(root, "", more)


def fields_below(node: Schema, path: str) -> Iterator[FieldSchema]:
    """Every field below a node, depth first, in the order of the models; keys of maps are no fields."""
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        field = FieldSchema(f"{path}.{name}" if path else name, child, name in required)
        yield field
        yield from fields_below(child, field.path)
        yield from fields_below(child.get("items", {}), f"{field.path}[]")


def _with_more(node: Schema, path: str, more: Mapping[str, Schema]) -> Schema:
    result = {**node, **more.get(path, {})}
    if "example" in result:
        result["examples"] = [result.pop("example")]
    if "properties" in node:
        result["properties"] = {
            name: _with_more(child, f"{path}.{name}" if path else name, more) for name, child in node["properties"].items()
        }
    if "items" in node:
        result["items"] = _with_more(node["items"], f"{path}[]", more)
    return result


def _more(model: type[pydantic.BaseModel], path: str) -> dict[str, Schema]:
    """Path → examples and enum, of everything below a model."""
    schema = model.model_json_schema(by_alias=True)
    found: dict[str, Schema] = {}

    def visit(node: Schema, path: str) -> None:
        for keyword in ("examples", "enum"):
            if keyword in node:
                found.setdefault(path, {}).setdefault(keyword, node[keyword])
        if "$ref" in node:
            visit(schema["$defs"][node["$ref"].removeprefix("#/$defs/")], path)
        for branch in node.get("anyOf", ()):
            visit(branch, path)
        for name, child in node.get("properties", {}).items():
            visit(child, f"{path}.{name}")
        if "items" in node:
            visit(node["items"], f"{path}[]")

    visit(schema, path)
    return found
