"""The models accept and reject the same specs as the CRD. tests/cluster runs the same cases on an API server."""

import copy
import functools
import operator
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api import crd, resource
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, arguments
from unit.api import spec_cases, task_cases

ROOT = pathlib.Path(__file__).resolve().parents[3]
JOB = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "x"}, "spec": spec_cases.MINIMAL}


def job(**changes: Any) -> dict[str, Any]:
    return {**JOB, **changes}


@pytest.mark.parametrize("case", spec_cases.ACCEPTED, ids=lambda case: case.name)
def test_a_good_spec_is_accepted(case: spec_cases.Case) -> None:
    spec = resource.parse_spec(case.spec)
    assert resource.parse_spec(spec.to_wire()) == spec, "the written spec must parse to the same spec"


@pytest.mark.parametrize("case", spec_cases.REFUSED, ids=lambda case: case.name)
def test_a_wrong_spec_is_refused_with_the_field_s_path(case: spec_cases.Case) -> None:
    with pytest.raises(FineTuneError) as refusal:
        resource.parse_spec(case.spec)
    assert refusal.value.reason == Reason.INVALID_SPEC
    assert case.field is not None
    assert f"{case.field}: {case.message or ''}" in refusal.value.message


def crd_rules(node: Any) -> set[str]:
    """Return the messages of all CEL rules below a node of the CRD."""
    if isinstance(node, list):
        return set().union(*map(crd_rules, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    own = {rule["message"] for rule in node.get("x-kubernetes-validations", ())}
    return own.union(*map(crd_rules, node.values())) if node else own


def test_every_rule_of_the_crd_is_in_the_models_with_the_same_message() -> None:
    schema = crd.custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert crd_rules(schema["properties"]["spec"]) == {case.message for case in spec_cases.REFUSED if case.message}


@pytest.mark.parametrize(("name", "message"), task_cases.ARGUMENTS.items())
def test_an_argument_that_another_field_sets_is_refused_with_its_name(name: str, message: str) -> None:
    with pytest.raises(FineTuneError) as refusal:
        resource.parse_spec({**spec_cases.MINIMAL, "training": {"arguments": {"weight_decay": 0.1, name: 1}}})
    assert refusal.value.message == f"spec.training.arguments: {message}"


def test_all_refused_arguments_are_named_at_once() -> None:
    wrong = {"learning_rate": 0.1, "weight_decay": 0.1, "report_to": "wandb", "ddp_backend": "gloo"}
    with pytest.raises(FineTuneError) as refusal:
        resource.parse_spec({**spec_cases.MINIMAL, "training": {"arguments": wrong}})
    assert refusal.value.message == (
        "spec.training.arguments: learning_rate: write spec.training.learningRate instead; "
        "report_to: write spec.logging.reportTo instead; ddp_backend is set by the trainer itself: remove it"
    )


def test_every_field_that_replaces_an_argument_exists() -> None:
    schema = crd.structural_schema(FineTuneJobSpec)
    for field in arguments.REPLACED_BY.values():
        if field == "metadata.name":
            continue
        node = schema
        for part in field.split("."):
            node = node["properties"][part]


def test_the_number_of_processes_follows_from_the_gpus() -> None:
    def processes(**distributed: int) -> int:
        return resource.parse_spec({**spec_cases.MINIMAL, "distributed": distributed}).processes_per_node

    assert (processes(), processes(gpusPerNode=4), processes(gpusPerNode=4, processesPerNode=2)) == (1, 4, 2)


def test_each_claim_of_a_job_is_named_once() -> None:
    spec = resource.parse_spec(spec_cases.FULL)
    assert spec.claim_names() == ["data", "models"]


def test_a_job_in_a_file_may_have_the_fields_that_kubectl_get_adds() -> None:
    parsed = resource.parse_job(
        job(metadata={"name": "x", "namespace": "y", "uid": "1", "labels": {}, "generation": 3}, status={"phase": "Running"})
    )
    assert (parsed.metadata.name, parsed.metadata.namespace, parsed.status) == ("x", "y", {"phase": "Running"})
    assert "status" not in parsed.to_wire()


@pytest.mark.parametrize("manifest", [None, [], "text", {}, {"kind": "Job"}, job(apiVersion="finetune.dev/v1"), job(kind="Pod")])
def test_another_object_than_a_finetunejob_is_refused(manifest: Any) -> None:
    with pytest.raises(FineTuneError, match=r"not a FineTuneJob: write apiVersion: finetune\.dev/v1alpha1, kind: FineTuneJob"):
        resource.parse_job(manifest)


@pytest.mark.parametrize("name", ["a", "a-1", "a" * 52])
def test_a_good_name_is_accepted(name: str) -> None:
    assert resource.parse_job(job(metadata={"name": name})).metadata.name == name


@pytest.mark.parametrize("name", ["", "A", "1a", "a.b", "a_b", "-a", "a-", "a\n", "a" * 53])
def test_a_name_that_gives_children_invalid_names_is_refused(name: str) -> None:
    with pytest.raises(FineTuneError, match=r"metadata\.name: write at most 52 characters"):
        resource.parse_job(job(metadata={"name": name}))


def test_a_refusal_names_every_wrong_field_and_repeats_no_value() -> None:
    spec = {**spec_cases.MINIMAL, "training": {"epochs": "hf_secret", "typo": "hf_secret"}}
    with pytest.raises(FineTuneError) as refusal:
        resource.parse_job(job(spec=spec))
    assert "spec.training.epochs: " in refusal.value.message
    assert "spec.training.typo: unknown field; correct its name or remove it" in refusal.value.message
    assert "hf_secret" not in refusal.value.message


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every object in a spec, except of those whose keys the user chooses."""
    if isinstance(value, dict) and path[-1:] not in [(name,) for name in MAPS]:
        yield path
    if isinstance(value, dict | list):
        for part, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from objects(child, (*path, part))


MAPS = (
    "arguments", "requests", "limits", "nodeSelector", "labels", "annotations", "matchLabels", "classWeights", "volumeAttributes",
)  # fmt: skip


@pytest.mark.parametrize("path", list(objects(spec_cases.FULL)), ids=lambda path: ".".join(map(str, path)))
def test_no_part_of_the_spec_ignores_an_unknown_field(path: tuple[str | int, ...]) -> None:
    spec = copy.deepcopy(spec_cases.FULL)
    functools.reduce(operator.getitem, path, spec)["unknownField"] = {}
    with pytest.raises(FineTuneError, match=r"unknownField: unknown field"):
        resource.parse_spec(spec)


@pytest.mark.parametrize(
    ("path", "field", "meant"),
    [
        ("pod.affinity", "nodeAffinty", "nodeAffinity"),
        ("training", "learning_rate", "learningRate"),
        ("datasets.0.claim", "claim_name", "claimName"),
        ("pod.securityContext", "runAsUsr", "runAsUser"),
    ],
)
def test_an_unknown_field_is_refused_with_the_name_that_was_meant(path: str, field: str, meant: str) -> None:
    spec = copy.deepcopy(spec_cases.FULL)
    parts = [int(part) if part.isdigit() else part for part in path.split(".")]
    functools.reduce(operator.getitem, parts, spec)[field] = {}
    with pytest.raises(FineTuneError, match=rf"\.{field}: unknown field; did you mean {meant}\?"):
        resource.parse_spec(spec)


@pytest.mark.parametrize(
    ("value", "says_how_to_write_it"),
    [("1e-4", True), ("3", True), (" 2.5 ", True), ("many", False), ("nan", False)],
)
def test_a_number_that_yaml_1_1_reads_as_text_is_refused_with_the_way_to_write_it(value: Any, says_how_to_write_it: bool) -> None:
    with pytest.raises(FineTuneError) as caught:
        resource.parse_spec({**spec_cases.MINIMAL, "training": {"learningRate": value}})
    assert caught.value.message.startswith("spec.training.learningRate: ")
    assert ("with a point if it has an exponent: 1.0e-4" in caught.value.message) == says_how_to_write_it


def test_examples_and_pages_write_numbers_that_every_version_of_yaml_reads() -> None:
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.yaml"), *ROOT.glob("*.md")]
    assert len(pages) > 20
    wrong = re.compile(r"^ *[A-Za-z]+: [0-9]+e-?[0-9]+", re.MULTILINE)
    assert {
        str(page): wrong.findall(page.read_text(encoding="utf-8")) for page in pages if wrong.search(page.read_text("utf-8"))
    } == {}
