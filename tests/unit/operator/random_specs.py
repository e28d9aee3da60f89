"""Random specs that the models accept. They are drawn from the schema of the CRD, and so include all its fields."""

import copy
import functools
import re
from typing import Any

import pydantic
import yaml
from hypothesis import assume
from hypothesis import strategies as st

from finetune_api.crd import custom_resource_definition
from finetune_api.spec import TASKS, FineTuneJobSpec

Object = dict[str, Any]
# The three forms of CEL rules in the CRD that relate two fields of one object.
_EXACTLY_ONE = re.compile(r"has\(self\.(\w+)\) != has\(self\.(\w+)\)")
_ONE_OF = re.compile(r"\[(has\(self\.\w+\)(?:, has\(self\.\w+\))*)\]\.exists_one\(given, given\)")
_NOT_BOTH = re.compile(r"!\(has\(self\.(\w+)\) && has\(self\.(\w+)\)\)")
_QUANTITIES = st.sampled_from([1, 2, "1", "500m", "64Mi", "1Gi", "0.5", "2k"])
_SIZES = st.sampled_from([1000, "64Mi", "1Gi", "2k"])
# Requests never exceed limits, and devices have limits only. The API server enforces both.
_REQUESTS = {"cpu": st.sampled_from([1, "1", "500m", "0.5"]), "memory": _SIZES, "ephemeral-storage": _SIZES}
_LIMITS = {"cpu": st.sampled_from([2, "2", "1500m"]), "memory": st.just("2Gi"), "example.com/fpga": st.sampled_from([1, "2"])}
_LABEL = r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?"
_KEYS = st.from_regex(rf"({_LABEL}\.(com|dev|io)/)?{_LABEL}", fullmatch=True)
_VALUES = st.from_regex(_LABEL, fullmatch=True)
# These fields are always drawn, because the tests are about them.
_ALWAYS = {"pod", "output", "env", "volumes", "volumeMounts", "initContainers", "labels", "annotations", "securityContext"}
_PATHS = st.from_regex(r"(\.?[A-Za-z0-9][A-Za-z0-9._ -]{0,8})(/\.?[A-Za-z0-9][a-z0-9._-]{0,8}){0,2}", fullmatch=True)
_TOLERATIONS = st.sampled_from(
    [
        {"operator": "Exists"},
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 5},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
    ]
)
_TERMS = [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["gpu"]}]}]
_AFFINITIES = st.sampled_from(
    [
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": _TERMS}}},
        {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "zone", "labelSelector": {"matchLabels": {"team": "search"}}}
                ]
            }
        },
    ]
)
# The API server checks more than the schema for these fields. Their values are drawn as users write them.
_KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "affinity": _AFFINITIES,
    "arguments": st.sampled_from([{}, {"weight_decay": 0.1}]),
    "annotations": st.dictionaries(
        _KEYS, st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20), max_size=3
    ),
    "gpuResourceName": st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"]),
    "image": st.sampled_from(["example.com/trainer:1", "trainer@sha256:" + "0" * 64]),
    "key": st.from_regex(r"[a-zA-Z]([A-Za-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True),
    "labels": st.dictionaries(_KEYS, _VALUES, max_size=3),
    "nodeSelector": st.dictionaries(_KEYS, _VALUES, max_size=3),
    "evalPath": _PATHS,
    "limits": st.fixed_dictionaries({}, optional=_LIMITS),
    "mountPath": st.from_regex(r"/mnt(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,5}){1,3}", fullmatch=True),
    "path": _PATHS,
    "requests": st.fixed_dictionaries({}, optional=_REQUESTS),
    "size": st.sampled_from(["64Mi", "1Gi", "1.5Gi"]),
    "sizeLimit": st.sampled_from(["64Mi", "1Gi"]),
    "task": st.sampled_from(TASKS),
    "tolerations": st.lists(_TOLERATIONS, max_size=3),
    "topologyKey": st.sampled_from(["zone", "kubernetes.io/hostname", "example.com/rack"]),
}


@functools.cache
def _schema() -> Object:
    crd = yaml.safe_load(yaml.safe_dump(custom_resource_definition()))
    spec: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


@functools.cache
def _spec_strategy() -> st.SearchStrategy[Any]:
    return _strategy_for(_schema())


@st.composite
def specs(draw: st.DrawFn) -> Object:
    """Draw a spec that the models accept, with the field names that users write."""
    spec: Object = copy.deepcopy(draw(_spec_strategy()))
    _satisfy_cross_field_rules(spec)
    try:
        FineTuneJobSpec.model_validate(spec, by_alias=True, by_name=False)
    except pydantic.ValidationError:
        assume(False)
    return spec


def _satisfy_cross_field_rules(spec: Object) -> None:
    """Change a spec so that it satisfies the rules over several fields, which random values would rarely satisfy."""
    for volume in [spec.get("output", {}).get("volume") or {}]:
        volume.pop("accessMode", None)
    spec.get("output", {}).get("retention", {}).pop("whenFinished", None)
    spec.get("training", {}).pop("perDeviceBatchSize", None)
    # These depend on the task and do not change pods.
    for name in ("classification", "maskedLM", "sft", "dpo", "evaluation", "samples"):
        spec.pop(name, None)
    spec["model"].pop("quantization", None)
    spec.get("training", {}).pop("loop", None)
    for name in ("when", "mergeAdapter"):
        spec.get("publish", {}).pop(name, None)
    for dataset in spec["datasets"]:
        for name in ("columns", "weight", "streaming"):
            dataset.pop(name, None)
        for name in ("evalPath", "format"):
            dataset.get("claim", {}).pop(name, None)
    _satisfy_rules_of_pods(spec.get("pod", {}), spec.get("distributed", {}))


def _satisfy_rules_of_pods(pod: Object, distributed: Object) -> None:
    pod["env"] = list({item["name"]: item for item in pod.get("env", ())}.values())
    _satisfy_rules_of_volumes(pod)
    pod["topologySpreadConstraints"] = list(
        {item["topologyKey"]: item for item in pod.get("topologySpreadConstraints", ())}.values()
    )
    for field in ("resourceClaims", "schedulingGates"):
        pod[field] = list({item["name"]: item for item in pod.get(field, ())}.values())
    if distributed.get("gpusPerNode") and pod["resourceClaims"] and "gpuResourceClaim" in distributed:
        distributed["gpuResourceClaim"] = pod["resourceClaims"][0]["name"]
    else:
        distributed.pop("gpuResourceClaim", None)
    for field in ("env", "volumes", "initContainers", "topologySpreadConstraints", "resourceClaims", "schedulingGates"):
        if not pod[field]:
            del pod[field]


def _satisfy_rules_of_volumes(pod: Object) -> None:
    """Give the volumes and init containers unique names, and let each container mount volumes that exist, at different paths."""
    volumes = list({item.get("mountPath", index): item for index, item in enumerate(pod.get("volumes", ()))}.values())
    for index, volume in enumerate(volumes):
        if "name" in volume or "mountPath" not in volume:
            volume["name"] = f"volume-{index}"
    named = [volume["name"] for volume in volumes if "name" in volume]
    containers = pod.get("initContainers", [])
    for index, container in enumerate(containers):
        container["name"] = f"container-{index}"
        mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", ())} if named else {}
        container["volumeMounts"] = list(mounts.values())
        for number, mount in enumerate(mounts.values()):
            mount["name"] = named[number % len(named)]
        container["env"] = list({item["name"]: item for item in container.get("env", ())}.values())
    pod["volumes"], pod["initContainers"] = volumes, containers


def _strategy_for(schema: Object, name: str = "") -> st.SearchStrategy[Any]:
    if name in _KNOWN:
        return _KNOWN[name]
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return _QUANTITIES
    match schema.get("type"):
        case "object":
            return _object(schema)
        case "array":
            return st.lists(_strategy_for(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
        case "string":
            return _text(schema)
        case "integer":
            return st.integers(schema.get("minimum", 0), min(schema.get("maximum", 10**9), 10**9))
        case "number":
            return st.floats(0, schema.get("maximum", 0.5)).filter(lambda value: 0 < value < 1)
        case "boolean":
            return st.booleans()
    raise AssertionError(f"no way to draw {name}: {schema}")


def _text(schema: Object) -> st.SearchStrategy[str]:
    shortest, longest = schema.get("minLength", 0), min(schema.get("maxLength", 40), 40)
    if pattern := schema.get("pattern"):
        drawn = st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
        return drawn.filter(lambda text: shortest <= len(text) <= longest and "\n" not in text)
    return st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=shortest, max_size=longest)


def _object(schema: Object) -> st.SearchStrategy[Object]:
    fields = schema.get("properties")
    if fields is None:
        return st.dictionaries(_KEYS, _strategy_for(schema["additionalProperties"]), max_size=3)
    required = set(schema.get("required", ()))
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", ())]
    unions = [list(found.groups()) for rule in rules if (found := _EXACTLY_ONE.fullmatch(rule))]
    unions += [re.findall(r"has\(self\.(\w+)\)", found[1]) for rule in rules if (found := _ONE_OF.fullmatch(rule))]
    exclusive = [found.groups() for rule in rules if (found := _NOT_BOTH.fullmatch(rule))]

    def choose(drawn: tuple[Object, tuple[str, ...]]) -> Object:
        values, chosen = {key: value for key, value in drawn[0].items() if value is not None}, drawn[1]
        for union, kept in zip(unions, chosen, strict=True):
            for name in set(union) - {kept}:
                values.pop(name, None)
        for one, other in exclusive:
            if one in values and other in values:
                del values[other]
        return values

    always = required | _ALWAYS | {name for union in unions for name in union}
    needed = {name: _strategy_for(field, name) for name, field in fields.items() if name in always}
    free = {name: _strategy_for(field, name) for name, field in fields.items() if name not in needed}
    chosen = st.tuples(*map(st.sampled_from, unions))
    return st.tuples(st.fixed_dictionaries(needed, optional=free), chosen).map(choose)
