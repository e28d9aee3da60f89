"""What `finetune run` prints at its end runs as it is, for every task, with and without adapters on a model from a claim.

One process trains all the jobs for one step, because imports take longer than such a training.
"""

import io
import json
import pathlib
import shlex
import shutil
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from finetune_api import cli, names
from finetune_api.resource import parse_spec
from finetune_api.try_command import predict_command
from finetune_trainer.commands.console import show_result
from finetune_trainer.output.directory import OutputDirectory
from trainer import small_jobs
from trainer.torchrun import run_script

TRAINED = (
    "text-classification", "text-classification-pairs", "text-classification-regression", "text-classification-multilabel",
    "token-classification", "masked-lm", "causal-lm", "sft-prompts", "sft-chats", "dpo",
)  # fmt: skip
ALL = [name + kind for name in TRAINED for kind in ("", " with adapters")]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # from peft


def spec_of(name: str) -> dict[str, Any]:
    task, _, adapters = name.partition(" ")
    spec: dict[str, Any] = json.loads(json.dumps(small_jobs.JOBS[task]))
    spec["training"]["maxSteps"] = 1
    return spec | ({"model": {**spec["model"], "lora": {}}} if adapters else {})


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Train all the jobs. Return the directory with their outputs, and with the claim `small`."""
    directory = tmp_path_factory.mktemp("after training")  # the space shows that commands are quoted
    small_jobs.write_all(directory / "small")
    place = {"namespace": "default", "nodes": 1, "processesPerNode": 1, "claims": {"small": str(directory / "small")}}
    configs = [place | {"name": "job", "spec": spec_of(name), "output": str(directory / name)} for name in ALL]
    (directory / "jobs.json").write_text(json.dumps(configs))
    ended = run_script("train_jobs", directory / "jobs.json", 1)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-6000:]
    return directory


def run_printed(command: str) -> Result:
    program, *arguments = shlex.split(command)
    assert program == "finetune"
    return CliRunner().invoke(cli.main, arguments)


def last_printed(output: pathlib.Path, spec: dict[str, Any]) -> str:
    stream, directory = io.StringIO(), OutputDirectory(output)
    report = directory.finished_report()
    assert report
    show_result(Console(file=stream, width=80), report, directory, parse_spec(spec))
    return stream.getvalue().splitlines()[-1]


@pytest.mark.parametrize("name", ALL)
def test_the_command_that_is_printed_at_the_end_runs_as_it_is(trained: pathlib.Path, name: str) -> None:
    command = last_printed(trained / name, spec_of(name))
    result = run_printed(command)
    assert (result.exit_code, result.stderr) == (0, ""), f"{command}\n{result.output}"


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("dpo")])
def test_an_evaluation_on_the_jobs_own_data_gives_the_jobs_own_metrics(
    trained: pathlib.Path, name: str, tmp_path: pathlib.Path
) -> None:
    """The columns, the longest row and the classes are those of the job."""
    spec, output = spec_of(name), trained / name
    file = trained / "small" / spec["datasets"][0]["claim"]["evalPath"]
    result = CliRunner().invoke(cli.main, ["evaluate", str(output), str(file), "--output", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 0, result.output
    found = dict(line.split("  ") for line in result.stdout.splitlines() if "  " in line)
    expected = json.loads((output / "evaluation.json").read_text())["metrics"]
    assert {metric: float(value) for metric, value in found.items()} == pytest.approx(expected, abs=1e-3)


def test_the_claims_of_a_job_are_remembered(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job = tmp_path / "job.yaml"
    resource = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "job"}}
    job.write_text(json.dumps(resource | {"spec": spec_of("text-classification")}))
    arguments = ["evaluate", str(trained / "text-classification"), str(job), "--output", str(tmp_path / "rows.jsonl")]
    assert CliRunner().invoke(cli.main, arguments).exit_code == 0


def test_a_downloaded_adapter_asks_for_the_claim_of_its_base_model(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As after `kubectl finetune pull`, which fetches the model alone. In the pod, the claim was mounted."""
    spec, model = parse_spec(spec_of("text-classification with adapters")), tmp_path / "model"
    shutil.copytree(trained / "text-classification with adapters" / "model", model)
    config = json.loads((model / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(trained / "small/models/encoder")
    config["base_model_name_or_path"] = f"{names.CLAIMS_DIR}/small/models/encoder"
    (model / "adapter_config.json").write_text(json.dumps(config))
    refused = run_printed(predict_command(str(model), spec))
    assert refused.exit_code == names.EXIT_REFUSED
    assert refused.stderr == (
        f"{model}: holds an adapter of the model {names.CLAIMS_DIR}/small/models/encoder, which is not on this machine; "
        "add --claim small=DIR, or --base DIR\n"
    )
    printed = predict_command(str(model), spec, elsewhere=True)
    assert printed.endswith(" --claim small=DIR")
    result = run_printed(printed.removesuffix("DIR") + shlex.quote(str(trained / "small")))
    assert (result.exit_code, result.stderr) == (0, "")


def test_the_name_of_a_repository_stands_for_its_model(
    trained: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "cache"
    shutil.copytree(trained / "text-classification with adapters" / "model", cached)
    config = json.loads((cached / "adapter_config.json").read_text())
    (cached / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))  # as after a push
    monkeypatch.setattr("finetune_trainer.hub.client.snapshot_download", lambda *_, **__: str(cached))
    refused = run_printed("finetune predict team/news 'A text.'")
    assert (refused.exit_code, refused.stderr.count("\n")) == (names.EXIT_REFUSED, 1)
    assert "holds an adapter that names no base model; add --base with its directory or repository" in refused.stderr
    base = shlex.quote(str(trained / "small/models/encoder"))
    result = run_printed(f"finetune predict team/news 'A text.' --base {base}")
    assert (result.exit_code, result.stderr) == (0, "")
