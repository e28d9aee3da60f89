"""A FineTuneJob beside the whole stream of objects that its first attempt gets, as `finetune_operator render` prints it."""

import pathlib

import pytest

from finetune_operator.__main__ import main
from finetune_operator.render import dump_objects, render_objects

HERE = pathlib.Path(__file__).parent
CASES = sorted(path.name.removesuffix(".input.yaml") for path in HERE.glob("*.input.yaml"))
IMAGE = "registry.example.com/finetune-trainer:1.0.0"


@pytest.mark.parametrize("case", CASES)
def test_a_job_gets_exactly_these_objects(case: str, update_golden: bool) -> None:
    made = dump_objects(render_objects(HERE / f"{case}.input.yaml", IMAGE))
    expected = HERE / f"{case}.expected.yaml"
    if update_golden:
        expected.write_text(made, encoding="utf-8")
    assert made == expected.read_text(encoding="utf-8")


def test_render_prints_the_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(HERE / "one-node.input.yaml"), "--trainer-image", IMAGE]) == 0
    assert capsys.readouterr().out == (HERE / "one-node.expected.yaml").read_text(encoding="utf-8")


def test_render_refuses_a_wrong_file_with_a_sentence(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\nspec: {}\n")
    assert main(["render", str(file)]) == 64
    assert "spec.model: required field is missing" in capsys.readouterr().err
