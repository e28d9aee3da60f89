"""Each value is in the README and in the schema, and a wrong value is rejected with a clear message."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, refusal

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
README = (CHART / "README.md").read_text(encoding="utf-8")
# Values that the chart copies to the pod. The schema does not list each of their keys.
COPIED = {
    "resources", "test.resources", "livenessProbe", "readinessProbe", "startupProbe", "podSecurityContext",
    "containerSecurityContext",
}  # fmt: skip


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the default of every value that can be set."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in COPIED:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema


def objects(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every part of the schema that describes a map, with its path."""
    schema = resolve(schema)
    if "object" in schema.get("type", ""):
        yield path, schema
    for key, part in schema.get("properties", {}).items():
        yield from objects(part, f"{path}.{key}")
    if "items" in schema:
        yield from objects(schema["items"], f"{path}[]")


def table() -> dict[str, str]:
    """Return the README's table of values: path → default."""
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]*)` \| .+ \|$", README, re.MULTILINE))


def test_every_value_is_in_the_readme_with_its_default() -> None:
    expected = {path: value if isinstance(value, str) and value else json.dumps(value) for path, value in leaves(VALUES)}
    assert table() == expected


def test_the_schema_knows_every_value_and_no_other() -> None:
    def known(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, part in resolve(schema).get("properties", {}).items():
            path = f"{prefix}{key}"
            if "properties" in resolve(part) and path not in COPIED and path in nested:
                yield from known(part, f"{path}.")
            else:
                yield path

    nested = {".".join(path.split(".")[:depth]) for path, _ in leaves(VALUES) for depth in range(1, path.count(".") + 1)}
    assert set(known(SCHEMA)) - {"global"} == {path for path, _ in leaves(VALUES)}


def test_the_schema_refuses_unknown_keys_except_in_kubernetes_types() -> None:
    open_maps = {path for path, schema in objects(SCHEMA, "") if "additionalProperties" not in schema}
    kubernetes = {
        ".affinity.nodeAffinity", ".affinity.podAffinity", ".affinity.podAntiAffinity", ".env[].valueFrom",
        ".networkPolicy.metricsFrom[].ipBlock", ".site.networkPolicy.metricsFrom[].ipBlock", ".topologySpreadConstraints[]",
        ".resources.claims[]", ".test.resources.claims[]", ".podSecurityContext", ".containerSecurityContext",
    }  # fmt: skip
    matched = {path for path in open_maps if path.endswith("matchExpressions[]")}
    assert open_maps - matched == {".global", *kubernetes}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("image.tga=1", "at '/image': additional properties 'tga' not allowed"),
        ("trainerimage.tag=1", "at '': additional properties 'trainerimage' not allowed"),
        ("crds.keep=yes please", "at '/crds/keep': got string, want boolean"),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("image.digest=latest", "at '/image/digest': 'latest' does not match pattern '^(sha256:[0-9a-f]{64})?$'"),
        ("replicas=two", "at '/replicas': got string, want integer"),
        ("replicas=-1", "at '/replicas': minimum: got -1, want 0"),
        ("watchNamespaces={Team_A}", "at '/watchNamespaces/0': 'Team_A' does not match pattern"),
        ("watchNamespaces={a,a}", "at '/watchNamespaces': items at 0 and 1 are equal"),
        ("watchNamespaces=team-a", "at '/watchNamespaces': got string, want array"),
        ("site.hubEndpoint=hub.example.com", "at '/site/hubEndpoint': 'hub.example.com' does not match pattern '^(https?://"),
        ("site.cacheclaim=cache", "at '/site': additional properties 'cacheclaim' not allowed"),
        ("site.proxy.https=x", "at '/site/proxy': additional properties 'https' not allowed"),
        ("site.proxy.httpsProxy=http://a:b@proxy:1", "at '/site/proxy/httpsProxy': 'http://a:b@proxy:1' does not match pattern"),
        ("policy.allowedEnvironment={a*b}", "at '/policy/allowedEnvironment/0': 'a*b' does not match pattern"),
        ("site.securityContext.runAsUser=0", "at '/site/securityContext/runAsUser': minimum: got 0, want 1"),
        ("site.securityContext.privileged=true", "at '/site/securityContext': additional properties 'privileged' not allowed"),
        ("site.caBundle=x", "site.caBundle is not PEM text with certificates: it must contain -----BEGIN CERTIFICATE-----"),
        (
            "site.caBundle=-----BEGIN CERTIFICATE----- -----BEGIN PRIVATE KEY-----",
            "site.caBundle contains a private key, and every user could read it: leave only certificates in it",
        ),
        ("serviceAccount.create=false", "write the name of an existing ServiceAccount into serviceAccount.name"),
        ("policy.maxGpusPerJob=8", "at '/policy': additional properties 'maxGpusPerJob' not allowed"),
        ("policy.failurePolicy=Maybe", "at '/policy/failurePolicy': value must be one of 'Fail', 'Ignore'"),
        ("policy.allowedImages={a*}", "at '/policy/allowedImages/0': 'a*' does not match pattern"),
        ("test.timeoutSeconds=5", "at '/test/timeoutSeconds': minimum: got 5, want 30"),
        ("livenessProbe.path=/x", "at '/livenessProbe': additional properties 'path' not allowed"),
        ("podDisruptionBudget.minAvailable=half", "at '/podDisruptionBudget/minAvailable'"),
        ("extraArgs={run}", "at '/extraArgs/0': 'run' does not match pattern '^--'"),
        ("workers=0", "at '/workers': minimum: got 0, want 1"),
        ("resources.request.cpu=1", "at '/resources': additional properties 'request' not allowed"),
    ],
)
def test_a_wrong_value_is_refused_with_a_clear_message(value: str, message: str) -> None:
    assert message in refusal("--set", value)


@pytest.mark.parametrize(
    "values",
    ["policy.enabled=true,policy.maxGPUsPerJob=0", "site.securityContext=null", "resources.limits=null", "replicas=0"],
)
def test_a_valid_value_is_not_refused(values: str) -> None:
    assert refusal("--set", values) == ""
