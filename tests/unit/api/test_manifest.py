"""`finetune run` reads a file as kubectl does."""

import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest

from finetune_api.manifest import read_manifests
from finetune_api.reasons import FineTuneError, Reason

# The values that kubectl reads (sigs.k8s.io/yaml). The second test runs kubectl to check them.
SCALARS: dict[str, Any] = {
    "2e-5": 2e-5, "1e-7": 1e-7, "3.14e+2": 314, "2E5": 200_000, "1e3": 1000, "1.0": 1, "5.": 5, ".5": 0.5, "-.5": -0.5,
    "1_000": 1000, "0": 0, "-1": -1, "+1": 1, "017": 15, "08": 8, "0o17": 15, "0x1F": 31, "-0x10": -16, "0b11": 3,
    "1:30": "1:30", "12:30:45": "12:30:45", "1.2.3": "1.2.3", "1e": "1e", "e5": "e5", ".": ".", "_1": "_1", "0x": "0x",
    "2026-01-01": "2026-01-01", "2026-01-01T00:00:00Z": "2026-01-01T00:00:00Z",
    "yes": True, "Yes": True, "on": True, "y": True, "true": True, "TRUE": True, "no": False, "n": False, "Off": False,
    "+.5": 0.5, "1,000": "1,000", "tRUE": "tRUE",
    "~": None, "null": None, "": None, "nUll": "nUll", "nan": "nan", "infinity": "infinity",
    "\"2e-5\"": "2e-5", "'yes'": "yes", "!!str 5": "5", "=": "=",
    "[yes, 1, a]": [True, 1, "a"], "{a: 1e2}": {"a": 100},
}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same types, recursively: True is not 1, and 1.0 is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(text, encoding="utf-8")
    return path


def all_scalars() -> str:
    lines = [f"  k{number}: {scalar}" for number, scalar in enumerate(SCALARS)]
    return "\n".join(["apiVersion: finetune.dev/v1alpha1", "kind: FineTuneJob", "metadata:", "  name: x", "spec:", *lines, ""])


@pytest.mark.parametrize(("scalar", "value"), SCALARS.items(), ids=lambda value: repr(value))
def test_a_scalar_is_read_as_kubectl_reads_it(tmp_path: pathlib.Path, scalar: str, value: Any) -> None:
    [document] = read_manifests(write(tmp_path / "job.yaml", f"a: {scalar}\n"))
    assert same(document["a"], value), f"{document['a']!r} instead of {value!r}"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on the PATH")
def test_kubectl_reads_the_scalars_in_the_same_way(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "job.yaml", all_scalars())
    command = ["kubectl", "label", "--local", "--filename", str(path), "a=b", "--output", "json"]
    read = subprocess.run(command, check=True, capture_output=True, env={"PATH": os.environ["PATH"], "KUBECONFIG": os.devnull})
    values = json.loads(read.stdout)["spec"]
    wrong = {
        scalar: values[f"k{number}"]
        for number, (scalar, value) in enumerate(SCALARS.items())
        if not same(values[f"k{number}"], value)
    }
    assert not wrong


def test_several_documents_are_read_and_empty_ones_left_out(tmp_path: pathlib.Path) -> None:
    assert read_manifests(write(tmp_path / "job.yaml", "---\na: 1\n---\n---\nb: &x 2\nc: *x\n")) == [{"a": 1}, {"b": 2, "c": 2}]


def test_a_merge_key_copies_a_block(tmp_path: pathlib.Path) -> None:
    assert read_manifests(write(tmp_path / "job.yaml", "a: &x {b: 1}\nc: {<<: *x, d: 2}\n")) == [
        {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "job.yaml:3: not valid YAML: duplicate key 'a'"),
        ("a: [1\nb: 2\n", "job.yaml:2: not valid YAML: "),
        ("a:\n\t- 1\n", "job.yaml:2: not valid YAML: "),
        ("a: !!python/object:os.system x\n", "job.yaml:1: not valid YAML: could not determine a constructor"),
    ],
)
def test_invalid_yaml_is_refused_with_file_and_line(tmp_path: pathlib.Path, text: str, message: str) -> None:
    with pytest.raises(FineTuneError) as refusal:
        read_manifests(write(tmp_path / "job.yaml", text))
    assert refusal.value.reason == Reason.INVALID_SPEC
    assert message in refusal.value.message


def test_a_missing_file_is_refused_with_its_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FineTuneError, match=r"nowhere\.yaml: can't be read"):
        read_manifests(tmp_path / "nowhere.yaml")


def test_a_binary_file_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(FineTuneError, match=r"job\.yaml: can't be read"):
        read_manifests(tmp_path / "job.yaml")
