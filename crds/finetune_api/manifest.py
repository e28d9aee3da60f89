"""Reading YAML as kubectl does, so that one file means the same on this machine and on a cluster.

PyYAML reads YAML 1.1 literally: `2e-5` is a string to it, `1:30` ninety, `2026-01-01` a date. kubectl's reader
(sigs.k8s.io/yaml on go-yaml v2) has other rules; the resolvers below are those.
"""

import pathlib
import re
from typing import Any, cast

import yaml

from finetune_api.reasons import FineTuneError, Reason

_GO_EXPONENT_FROM = 1e21  # from here on Go writes 1e+21, which stays a float


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of go-yaml v2, refusing keys that are given twice as kubectl does."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - declared so in PyYAML

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is there already", key.start_mark)
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
        # On its way to the API server a whole number loses its decimals: JSON as Go writes it has no 1.0.
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


def read_manifests(path: pathlib.Path) -> list[Any]:
    """The YAML documents of a file; raise FineTuneError(InvalidSpec) with file and line when it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FineTuneError(Reason.INVALID_SPEC, f"{path}: can't be read: {error}") from None
    try:
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise FineTuneError(Reason.INVALID_SPEC, f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise FineTuneError(Reason.INVALID_SPEC, f"{path}: not valid YAML: {error}") from None
