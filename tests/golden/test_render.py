"""Golden files: a FineTuneJob, and all objects of its first attempt as `finetune render` prints them."""

import pathlib
import subprocess
import sys

import pytest
from click.testing import CliRunner

from finetune_api.cli import main
from finetune_operator.defaults import read_defaults
from finetune_operator.render import dump_objects, render_objects

HERE = pathlib.Path(__file__).parent
CASES = sorted(path.name.removesuffix(".input.yaml") for path in HERE.glob("*.input.yaml"))
IMAGE = "registry.example.com/finetune-trainer:1.0.0"


@pytest.mark.parametrize("case", CASES)
def test_a_job_gets_exactly_these_objects(case: str, update_golden: bool) -> None:
    site = HERE / f"{case}.site.yaml"
    rendered = dump_objects(render_objects(HERE / f"{case}.input.yaml", read_defaults(site if site.exists() else None, IMAGE)))
    expected = HERE / f"{case}.expected.yaml"
    if update_golden:
        expected.write_text(rendered, encoding="utf-8")
    assert rendered == expected.read_text(encoding="utf-8")


def render(*arguments: str) -> tuple[int, str]:
    """Return the exit code and the output of `finetune render`."""
    result = CliRunner().invoke(main, ["render", *arguments])
    return result.exit_code, result.output


def test_render_prints_the_stream() -> None:
    expected = (HERE / "one-node.expected.yaml").read_text(encoding="utf-8")
    assert render(str(HERE / "one-node.input.yaml"), "--trainer-image", IMAGE) == (0, expected)


def test_render_applies_the_file_of_operator_defaults() -> None:
    expected = (HERE / "site.expected.yaml").read_text(encoding="utf-8")
    assert render(str(HERE / "site.input.yaml"), "--site-file", str(HERE / "site.site.yaml")) == (0, expected)


def test_render_refuses_a_wrong_site_file_with_a_sentence(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("nodeSelectors: {gpu: h100}\n")
    code, output = render(str(HERE / "one-node.input.yaml"), "--site-file", str(file))
    assert code == 2
    assert "nodeSelectors: unknown field" in output


def test_render_refuses_a_wrong_file_with_every_problem_and_its_line(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\nspec: {task: text}\n")
    code, output = render(str(file))
    assert code == 64
    assert [line.partition(": spec.")[0] for line in output.splitlines()] == [f"{file}:4"] * 3
    assert "spec.model: required field is missing" in output


def test_render_imports_neither_kopf_nor_the_kubernetes_client() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from finetune_api.cli import main;"
        f"result = CliRunner().invoke(main, ['render', {str(HERE / 'one-node.input.yaml')!r}]);"
        "assert result.exit_code == 0, result.output; print({'kopf', 'kubernetes', 'aiohttp', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
