"""`finetune validate` checks files as the API server does, and reports each problem with the line of its field."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner

from finetune_api import files, names
from finetune_api.cli import main
from finetune_api.reasons import FineTuneError
from unit.api import spec_cases

ROOT = pathlib.Path(__file__).parents[3]
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: {name}
spec:
  task: text-classification
  model:
    hub: {{name: owner/model}}
  datasets:
    - hub: {{name: owner/data}}
"""


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def validate(*arguments: object, text: str | None = None) -> tuple[int, list[str]]:
    """Run `finetune validate` and return its exit code and the lines of its output."""
    result = CliRunner().invoke(main, ["validate", *map(str, arguments)], input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output.splitlines()


def problems(text: str) -> list[str]:
    """Return the problems of a text on standard input, without the summary."""
    return [line.removeprefix("<stdin>:") for line in validate("-", text=text)[1][:-1]]


def job(name: str = "a", more: str = "") -> str:
    return JOB.format(name=name) + textwrap.indent(textwrap.dedent(more), "  ")


def test_a_good_file_ends_with_0_and_a_summary(tmp_path: pathlib.Path) -> None:
    assert validate(write(tmp_path / "a.yaml", job())) == (0, ["1 file, 1 FineTuneJob, 0 problems"])


def test_all_examples_are_valid_together() -> None:
    code, lines = validate(ROOT / "examples")
    assert code == 0, lines


def test_every_problem_of_a_file_has_a_line_of_its_own_with_the_line_of_the_field() -> None:
    text = job(
        "Wrong.Name", "training:\n  epochs: 1\n  maxSteps: 3\nsamples:\n- text: a\n- txt: b\npublish:\n  repository: none\n"
    )
    assert [problem.partition(" ")[0] for problem in problems(text)] == ["4:", "11:", "16:", "18:"]
    found = problems(text)
    assert found[0].startswith("4: metadata.name: write at most 52 characters")
    assert found[1] == "11: spec.training: write epochs or maxSteps, not both"
    assert found[2] == "16: spec.samples[1].txt: unknown field; did you mean text?"
    assert found[3].startswith("18: spec.publish.repository: ")


def test_a_missing_field_has_the_line_of_its_parent() -> None:
    text = "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\n\nspec:\n  # nothing yet\n  model: {}\n"
    assert "5: spec.task: required field is missing" in problems(text)
    assert "7: spec.model: write exactly one of hub and claim" in problems(text)


def test_a_value_in_a_flow_mapping_and_behind_an_anchor_has_its_own_line() -> None:
    text = job(more="training: {epochs: 1,\n  learningRate: much}\npod:\n  nodeSelector: &labels {a: 5}\n")
    assert [line.partition(" ")[0] for line in problems(text)] == ["12:", "14:"]


def test_each_document_is_checked_and_other_kinds_are_counted() -> None:
    text = "kind: ConfigMap\n---\n" + job("a") + "---\n# nothing\n---\n" + job("b", "suspended: true\n")
    code, lines = validate("-", text=text)
    assert code == 64
    assert lines == [
        "<stdin>:26: spec.suspended: unknown field; did you mean suspend?",
        "1 file, 2 FineTuneJobs, 1 problem (1 other object skipped)",
    ]


@pytest.mark.parametrize(
    "text", [job().replace("kind: FineTuneJob", "kind: FinetuneJob"), job().replace("v1alpha1", "v1")], ids=["kind", "version"]
)
def test_a_typo_in_kind_or_version_is_a_problem(text: str) -> None:
    assert problems(text) == ["1: not a FineTuneJob: write apiVersion: finetune.dev/v1alpha1, kind: FineTuneJob"]


def test_each_item_of_a_list_is_checked() -> None:
    items = textwrap.indent(job("a", "typo: 1\n"), "  ")
    assert problems(f"apiVersion: v1\nkind: List\nitems:\n-{items[1:]}") == [
        "14: spec.typo: unknown field; correct its name or remove it"
    ]


def test_a_name_that_is_given_twice_is_a_problem_in_the_same_namespace_only(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.yaml", job("one"))
    write(tmp_path / "b.yaml", job("one").replace("name: one", "name: one\n  namespace: other"))
    assert validate(tmp_path)[0] == 0
    write(tmp_path / "c.yaml", "---\n" + job("one"))
    assert validate(tmp_path)[1][0] == (
        f"{tmp_path}/c.yaml:5: metadata.name: FineTuneJob default/one is in {tmp_path}/a.yaml:4 already; give one another name"
    )


def test_a_file_that_is_given_twice_is_read_once(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "a.yaml", job())
    assert validate(file, tmp_path, file) == (0, ["1 file, 1 FineTuneJob, 0 problems"])


def test_a_folder_is_searched_recursively_without_hidden_files(tmp_path: pathlib.Path) -> None:
    for number, name in enumerate(("a.yaml", "deep/er/b.yml", "c.JSON", "d.txt", ".hidden/e.yaml", "deep/.f.yaml")):
        write(tmp_path / name, job(f"job-{number}"))
    assert validate(tmp_path) == (0, ["3 files, 3 FineTuneJobs, 0 problems"])


def test_json_is_read_with_its_tabs_and_lines() -> None:
    text = (
        '{\n\t"apiVersion": "finetune.dev/v1alpha1",\n\t"kind": "FineTuneJob",\n\t"metadata": {"name": "a"},\n\t"spec": {}\n}\n'
    )
    assert problems(text)[0] == "5: spec.task: required field is missing"


def test_invalid_yaml_has_its_line_and_the_documents_before_it_are_still_checked() -> None:
    assert problems(job("B") + "---\na: [1\nb: 2\n")[1].startswith("13: not valid YAML: ")
    assert len(problems(job("B") + "---\na: 1\na: 2\n---\n" + job("C"))) == 3, (
        "the document after one with a duplicate key is checked too"
    )


@pytest.mark.parametrize("text", ["[" * 5000, "a: \x01", "!!python/object:os.system x", "a: " + "1" * 5000])
def test_no_file_causes_a_traceback(text: str) -> None:
    code, lines = validate("-", text=text)
    assert code == 64
    assert "not valid YAML" in lines[0]


def test_a_key_can_neither_end_the_line_nor_control_the_terminal() -> None:
    [problem] = problems(job(more='"a\\e[31m\\nb": 1\n'))
    assert problem == r"11: spec.a\u001b[31m\u000ab: unknown field; correct its name or remove it"


def test_missing_and_binary_files_are_problems_and_the_others_are_checked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    code, lines = validate(tmp_path / "none.yaml", tmp_path / "a.yaml", write(tmp_path / "b.yaml", job()))
    assert code == 64
    assert lines == [
        f"{tmp_path}/none.yaml: can't be read: No such file or directory",
        f"{tmp_path}/a.yaml: can't be read: it is not UTF-8 text",
        "3 files, 1 FineTuneJob, 2 problems",
    ]


@pytest.mark.parametrize("case", [*spec_cases.ACCEPTED, *spec_cases.REFUSED], ids=lambda case: case.name)
def test_the_result_is_that_of_the_models(case: spec_cases.Case, tmp_path: pathlib.Path) -> None:
    manifest = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}, "spec": case.spec}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(manifest))
    found = [problem.message for problem in files.check_files([file]).problems]
    if case.field is None:
        assert found == []
    else:
        assert any(f"{case.field}: {case.message or ''}" in message for message in found)


def test_one_file_with_one_job_is_read_and_any_other_number_is_refused(tmp_path: pathlib.Path) -> None:
    assert files.read_job(write(tmp_path / "a.yaml", job("a"))).metadata.name == "a"
    with pytest.raises(FineTuneError, match="contains 2 FineTuneJobs, but exactly one is required"):
        files.read_job(write(tmp_path / "b.yaml", job("a") + "---\n" + job("b")))
    with pytest.raises(FineTuneError, match="holds no FineTuneJob"):
        files.read_job(write(tmp_path / "c.yaml", "kind: Pod\n"))


def test_validate_imports_neither_the_operator_s_nor_the_trainer_s_packages() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from finetune_api.cli import main;"
        f"CliRunner().invoke(main, ['validate', {str(ROOT / 'examples')!r}], catch_exceptions=False);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "transformers", "kopf", "kubernetes", "aiohttp", "rich", "numpy"} & set(loaded)


def test_the_commands_of_all_packages_are_listed_with_help_and_an_example() -> None:
    listing = CliRunner().invoke(main, ["--help"]).output
    for command in ("plan", "render", "run", "validate"):
        assert f"\n  {command} " in listing
        help_text = CliRunner().invoke(main, [command, "--help"])
        assert help_text.exit_code == 0
        assert f"Example:  finetune {command} " in help_text.output


@pytest.mark.parametrize(
    ("module", "command", "package", "extra"),
    [
        ("finetune_operator.render", "render", "finetune_operator", "operator"),
        ("rich.console", "plan", "rich", "trainer"),  # imported when the command runs
    ],
)
def test_a_command_whose_extra_is_not_installed_says_which(
    module: str, command: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(main, [command, str(write(tmp_path / "job.yaml", job()))])
    assert result.exit_code == 1
    assert result.output == f"Error: `finetune {command}` needs the package {package}: pip install 'finetune-operator[{extra}]'\n"
    assert "validate" in CliRunner().invoke(main, ["--help"]).output


@pytest.mark.parametrize("module", ["rich.console", "kubernetes", "finetune_client"])
def test_the_kubectl_plugin_without_its_extra_says_which_it_needs(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from finetune_api import plugin; plugin.main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    package = module.partition(".")[0]
    needs = f"Error: `kubectl finetune` needs the package {package}: pip install 'finetune-operator[client]'\n"
    assert (done.returncode, done.stderr) == (1, needs)


def test_misspelt_arguments_are_reported_with_their_lines_beside_those_that_are_refused(tmp_path: pathlib.Path) -> None:
    wrong = ["wieght_decay: 0.1", "weightDecay: 0.1", "report_to: wandb", "not_yet_known: 1"]
    lines = ["  training:", "    arguments:", *(f"      {line}" for line in wrong)]
    file = write(tmp_path / "job.yaml", JOB.format(name="a") + "\n".join(lines))
    code, shown = validate(file)
    meant = "spec.training.arguments: transformers has no TrainingArguments field {}; did you mean weight_decay?"
    assert code != 0
    assert shown[:3] == [
        f"{file}:12: spec.training.arguments: report_to: write spec.logging.reportTo instead",
        f"{file}:13: {meant.format('wieght_decay')}",
        f"{file}:14: {meant.format('weightDecay')}",
    ]
    assert "1 FineTuneJob, 3 problems" in shown[3], "an argument of a later version of transformers is not refused"


def test_a_list_of_columns_for_a_label_is_answered_in_words(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "job.yaml", JOB.format(name="a") + "      columns: {label: [stars, topic]}\n")
    assert validate(file)[1][0] == (
        f"{file}:11: spec.datasets[0].columns.label: write one column: a job learns from one; for several labels of the same "
        "texts, train one job for each"
    )


def test_a_push_without_a_token_is_refused_before_a_cluster_would_notice(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.ENV_HUB_TOKEN, raising=False)
    file = write(tmp_path / "job.yaml", JOB.format(name="news") + "  publish:\n    repository: team/news\n")
    code, [problem, _] = validate(file)
    assert code == 64
    assert problem.startswith(
        f"{file}:11: spec.publish: a push to 'team/news' needs a token, and there is none; name a Secret in"
    )
    write(file, file.read_text() + "  hub:\n    tokenSecretRef: {name: hub-token}\n")
    assert validate(file)[0] == 0
    monkeypatch.setenv(names.ENV_HUB_TOKEN, "hf_of_a_test")
    write(file, JOB.format(name="news") + "  publish:\n    repository: team/news\n")
    assert validate(file)[0] == 0, "for `finetune run`"


def test_options_for_the_data_need_data_in_files(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "job.yaml", JOB.format(name="news"))
    assert validate(file, "--claim", "a=b")[0] == 2
    assert validate("-", "--data", text=JOB.format(name="news"))[0] == 2


def test_a_misspelt_argument_that_a_field_replaces_is_answered_with_the_field(tmp_path: pathlib.Path) -> None:
    arguments = "{lerning_rate: 1, gradient_checkpoint: true, of_a_later_version: 1}"
    file = write(tmp_path / "job.yaml", JOB.format(name="news") + f"  training: {{arguments: {arguments}}}\n")
    code, [first, second, summary] = validate(file)
    assert (code, "2 problems" in summary) == (64, True)
    assert first.endswith(
        "no TrainingArguments field lerning_rate; did you mean learning_rate, which is spec.training.learningRate here?"
    )
    assert "did you mean gradient_checkpointing, which is spec.training.activationCheckpointing here?" in second
