"""The schema from which docs/api.md and the JSON schema for editors are generated: the CRD's, with examples and all enums."""

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
    """A field of the resource. path: for example spec.datasets[].hub.name. node: the field's schema in the CRD."""

    path: str
    node: Schema
    required: bool

    @property
    def rules(self) -> list[str]:
        """Messages of the rules that apply to every write."""
        return self._messages(on_change=False)

    @property
    def rules_on_change(self) -> list[str]:
        """Messages of the rules that compare an update with the old object."""
        return self._messages(on_change=True)

    def _messages(self, on_change: bool) -> list[str]:
        rules = self.node.get("x-kubernetes-validations", ())
        return [rule["message"] for rule in rules if ("oldSelf" in rule["rule"]) == on_change]


def resource_schema() -> Schema:
    """Return the CRD's schema of the whole resource, with the ``examples`` and every ``enum`` of the models."""
    [version] = crd.custom_resource_definition()["spec"]["versions"]
    root: Schema = version["schema"]["openAPIV3Schema"]
    keywords: dict[str, Schema] = {}
    for name, model in (("spec", FineTuneJobSpec), ("status", FineTuneJobStatus)):
        keywords |= _examples_and_enums(model, name)
    return _merge(root, "", keywords)


def fields_below(node: Schema, path: str) -> Iterator[FieldSchema]:
    """Yield every field below a node, depth first, in the order of the models. Keys of maps are not fields."""
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        field = FieldSchema(f"{path}.{name}" if path else name, child, name in required)
        yield field
        yield from fields_below(child, field.path)
        yield from fields_below(child.get("items", {}), f"{field.path}[]")


def _merge(node: Schema, path: str, keywords: Mapping[str, Schema]) -> Schema:
    """Return the schema with the keywords of each path. keywords: path → keyword → value."""
    result = {**node, **keywords.get(path, {})}
    if "example" in result:
        result["examples"] = [result.pop("example")]
    if "properties" in node:
        result["properties"] = {
            name: _merge(child, f"{path}.{name}" if path else name, keywords) for name, child in node["properties"].items()
        }
    if "items" in node:
        result["items"] = _merge(node["items"], f"{path}[]", keywords)
    return result


def _examples_and_enums(model: type[pydantic.BaseModel], path: str) -> dict[str, Schema]:
    """Return path → examples and enum for every field below a model, and the defaults below lists, which the CRD lacks."""
    schema = model.model_json_schema(by_alias=True)
    found: dict[str, Schema] = {}

    def visit(node: Schema, path: str) -> None:
        for keyword in ("examples", "enum", *(["default"] if "[]" in path and node.get("default") is not None else [])):
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
