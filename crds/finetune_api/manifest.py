"""Reads YAML as kubectl does, so that a file means the same on this machine and on a cluster.

PyYAML implements YAML 1.1 literally: it reads `2e-5` as a string, `1:30` as 90 and `2026-01-01` as a date. kubectl's reader
(sigs.k8s.io/yaml on go-yaml v2) has other rules. The resolvers below implement them.
"""

import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import yaml

from finetune_api.reasons import FineTuneError, Reason

_GO_EXPONENT_FROM = 1e21  # from here on Go writes 1e+21, which stays a float
STANDARD_INPUT = pathlib.Path("-")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads scalars as go-yaml v2 does, and rejects duplicate keys as kubectl does."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML declares it this way

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        return cast(dict[Any, Any], super().construct_mapping(node, deep=deep))

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value.replace("_", "")
        for base, prefix in ((16, "0x"), (2, "0b"), (8, "0o")):
            if text.lstrip("+-").lower().startswith(prefix):
                return int(text, base)
        if re.fullmatch(r"[-+]?0[0-7]+", text):
            return int(text, 8)
        if re.fullmatch(r"[-+]?[0-9]+", text):
            return int(text)
        number = float(text)
        # kubectl sends JSON to the API server, and Go writes 1.0 as 1 in JSON.
        return int(number) if number.is_integer() and abs(number) < _GO_EXPONENT_FROM else number


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile(r"^$")))
_resolve("bool", r"^(?:y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO")
_resolve("merge", r"^<<$", "<")
_resolve(
    "float",
    r"^(?:[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|[0-9][0-9_]*|(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?))$",
    "-+0123456789.",
)
_Loader.bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


@dataclasses.dataclass(frozen=True)
class Document:
    """One YAML document. node: the parsed node, which has the line numbers of all parts."""

    value: Any
    node: yaml.Node

    def line(self, path: Sequence[str | int] = ()) -> int:
        """Return the line of the field at a path, from 1. If the field is missing, return the line of its nearest parent."""
        node, line = self.node, self.node.start_mark.line
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line + 1

    def items(self) -> "list[Document]":
        """Return the objects of a List, as `kubectl get -o yaml` writes it. For any other document, return only the document."""
        found = _child(self.node, "items")
        if not isinstance(self.value, dict) or self.value.get("kind") != "List" or found is None:
            return [self]
        items, node = self.value.get("items"), found[1]
        if not isinstance(items, list) or not isinstance(node, yaml.SequenceNode):
            return [self]
        return [Document(value, child) for value, child in zip(items, node.value, strict=True)]


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line, from 0, and the value of a key or an item. For a key, it is the line of the key, not of its value."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key.start_mark.line, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line, item
    return None


@dataclasses.dataclass(frozen=True)
class SyntaxProblem:
    """A text that is not valid YAML. line: from 1; None if the reader does not report one."""

    line: int | None
    message: str


def read_text(path: pathlib.Path) -> str:
    """Return the text of a file, or of standard input for `-`; raise FineTuneError(InvalidSpec) if it can't be read."""
    try:
        return sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FineTuneError(Reason.INVALID_SPEC, f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise FineTuneError(Reason.INVALID_SPEC, f"{path}: can't be read: it is not UTF-8 text") from None


def parse_documents(text: str) -> Iterator[Document | SyntaxProblem]:
    """Yield the documents of a text, without empty ones. Yield a SyntaxProblem for a document that is not valid YAML."""
    try:
        loader = _Loader(_without_tabs(text))
    except yaml.YAMLError as error:
        yield _problem(error)
        return
    while True:
        try:
            if not loader.check_node():
                return
            node = loader.get_node()
            assert node is not None
        except (yaml.YAMLError, RecursionError) as error:
            yield _problem(error)
            return  # the reader can't find the beginning of the next document
        try:
            value = loader.construct_document(node)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            yield _problem(error)
            continue
        if value is not None:
            yield Document(value, node)


def _problem(error: Exception) -> SyntaxProblem:
    if isinstance(error, yaml.MarkedYAMLError):
        return SyntaxProblem(error.problem_mark.line + 1 if error.problem_mark else None, f"not valid YAML: {error.problem}")
    if isinstance(error, RecursionError):
        return SyntaxProblem(None, "not valid YAML: nested too deeply")
    if isinstance(error, yaml.reader.ReaderError):
        return SyntaxProblem(None, f"not valid YAML: special characters are not allowed (position {error.position})")
    return SyntaxProblem(None, f"not valid YAML: {error}")


def _without_tabs(text: str) -> str:
    """Replace the tabs of a JSON text by spaces. Without tabs JSON is valid YAML. Strings in JSON contain no tab characters."""
    if not text.lstrip().startswith("{") or "\t" not in text:
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text.replace("\t", " ")


def read_manifests(path: pathlib.Path) -> list[Any]:
    """Return the YAML documents of a file; raise FineTuneError(InvalidSpec) with file and line if it can't be read."""
    documents = []
    for document in parse_documents(read_text(path)):
        if isinstance(document, SyntaxProblem):
            line = f":{document.line}" if document.line else ""
            raise FineTuneError(Reason.INVALID_SPEC, f"{path}{line}: {document.message}")
        documents.append(document.value)
    return documents
