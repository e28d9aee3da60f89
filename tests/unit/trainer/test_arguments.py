"""training.arguments are checked by name and type before a model is loaded."""

import dataclasses
import pathlib
import re
import typing
from typing import Any

import accelerate
import pytest
import torch
import transformers

from finetune_api.reasons import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec.arguments import PASSED_ON, REPLACED_BY, SET_BY_TRAINER, is_set_by_trainer, replaced_by
from finetune_api.spec.training import Scheduler
from finetune_trainer.data.batches import BatchPlan
from finetune_trainer.loops.arguments import check_arguments, training_arguments
from finetune_trainer.loops.ddp import tune_ddp


def spec(**training: Any) -> FineTuneJobSpec:
    fields = {
        "task": "masked-lm",
        "model": {"hub": {"name": "a/b"}},
        "datasets": [{"hub": {"name": "c/d"}}],
        "training": training,
    }
    return FineTuneJobSpec.model_validate(fields)


def arguments(tmp_path: pathlib.Path, **training: Any) -> Any:
    return training_arguments(spec(**training), BatchPlan.choose(100, 8, 1, None), 40, tmp_path)


@pytest.mark.parametrize("given", [{"weight_decay": 0.1}, {"weight_decay": 1}, {"torch_compile": True}, {"optim": "sgd"}])
def test_a_field_of_the_right_type_is_accepted(given: dict[str, Any]) -> None:
    assert check_arguments(spec(arguments=given).training) == given


def test_a_string_is_converted_to_the_type_of_the_field() -> None:
    found = check_arguments(spec(arguments={"weight_decay": "0.1", "torch_compile": "false"}).training)
    assert found == {"weight_decay": 0.1, "torch_compile": False}


def test_the_native_loop_refuses_arguments_that_it_does_not_support() -> None:
    check_arguments(spec(loop="Native", arguments={"weight_decay": 0.1}).training)
    message = r"spec.training.arguments.optim: loop: Native does not support it; write loop: Trainer"
    with pytest.raises(FineTuneError, match=message):
        check_arguments(spec(loop="Native", arguments={"optim": "sgd"}).training)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"weight_decays": 0.1}, r"spec.training.arguments.weight_decays: .* did you mean weight_decay\?"),
        ({"qqq": 1}, r"spec.training.arguments.qqq: transformers .* has no TrainingArguments field of this name$"),
        ({"weight_decay": "much"}, r"spec.training.arguments.weight_decay: 'much' is wrong: .*number"),
        ({"torch_compile": "perhaps"}, r"spec.training.arguments.torch_compile: 'perhaps' is wrong"),
    ],
)
def test_an_unknown_name_or_a_wrong_type_is_refused_with_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FineTuneError, match=sentence):
        check_arguments(spec(arguments=given).training)


def test_all_wrong_arguments_are_named_at_once() -> None:
    wrong = {"wieght_decay": 0.1, "optim": "sgd", "adam_beta1": "high"}
    with pytest.raises(FineTuneError) as refused:
        check_arguments(spec(loop="Native", arguments=wrong).training)
    first, second, third = refused.value.message.split("; spec.training.arguments.")
    assert first.endswith("did you mean weight_decay?")
    assert second.startswith("optim: loop: Native does not support it")
    assert third.startswith("adam_beta1: 'high' is wrong: ")


def test_arguments_of_users_are_applied_and_the_spec_sets_the_others(tmp_path: pathlib.Path) -> None:
    found = arguments(tmp_path, arguments={"weight_decay": 0.3}, learningRate=1e-3)
    assert (found.weight_decay, found.learning_rate, found.max_steps) == (0.3, 1e-3, 40)
    assert found.report_to == []


@pytest.mark.parametrize(
    ("available", "precision", "tf32"),
    [(False, "Auto", None), (True, "Auto", True), (True, "tf32", True), (True, "fp32", False)],
)
def test_tf32_is_off_for_fp32_and_left_unset_on_a_gpu_without_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, available: bool, precision: str, tf32: bool | None
) -> None:
    """Setting tf32 is an error on a T4, a V100 and AMD GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: available)
    monkeypatch.setattr("finetune_trainer.runtime.device.is_torch_tf32_available", lambda: available)
    monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda _: None)  # it sets the GPU up
    assert arguments(tmp_path, precision=precision).tf32 is tf32


def test_ddp_keeps_no_second_copy_of_the_gradients_and_broadcasts_only_buffers_that_change() -> None:
    options = accelerate.DistributedDataParallelKwargs()
    tune_ddp(options, torch.nn.Linear(2, 2))
    assert (options.gradient_as_bucket_view, options.broadcast_buffers) == (True, False)
    tune_ddp(options, torch.nn.BatchNorm1d(2))
    assert options.broadcast_buffers is True
    tune_ddp(options, torch.nn.BatchNorm1d(2), broadcast_buffers=False)
    assert options.broadcast_buffers is True, "what the user asked for stays"


def test_arguments_that_transformers_refuses_give_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FineTuneError, match=r"spec.training.arguments \(optim\): the Trainer refuses them"):
        arguments(tmp_path, arguments={"optim": "no-such-optimizer"})


# --- every field of the installed TrainingArguments ---------------------------------------------------------------------

FIELDS = [field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init]
PAGE = pathlib.Path(__file__).parents[3] / "docs" / "from-hugging-face.md"


def rows_of_the_page() -> dict[str, str]:
    """Return name of an argument → the cell that says what to write."""
    lines = PAGE.read_text().partition("## How arguments map")[2].partition("\n## ")[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {name: cell for names, cell in cells for name in re.findall(r"`(\w+)`", names)}


def test_every_argument_is_passed_on_or_replaced_or_set_by_the_trainer() -> None:
    for name in FIELDS:
        answers = [name in PASSED_ON, replaced_by(name) is not None, replaced_by(name) is None and is_set_by_trainer(name)]
        assert sum(answers) == 1, f"finetune_api/spec/arguments.py does not say what to do with {name}"
    assert not [name for name in (*PASSED_ON, *REPLACED_BY, *SET_BY_TRAINER) if "*" not in name and name not in FIELDS]


@pytest.mark.parametrize("name", FIELDS)
def test_the_page_for_users_of_transformers_says_what_to_write_for_every_argument(name: str) -> None:
    cell = rows_of_the_page()[name]
    if field := replaced_by(name):
        assert field.rpartition(".")[2] in cell
    elif name in PASSED_ON:
        assert "`training.arguments`" in cell
    else:
        assert re.search(r"\bnot needed\b|\bchosen\b|\bset\b|\bnot supported\b", cell), cell


def test_the_schedules_are_those_of_transformers() -> None:
    assert set(typing.get_args(Scheduler)) == {kind.value for kind in transformers.SchedulerType}
