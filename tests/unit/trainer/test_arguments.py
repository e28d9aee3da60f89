"""training.arguments are checked by name and type before a model is loaded."""

import pathlib
from typing import Any

import pytest

from finetune_api.reasons import FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.batches import BatchPlan
from finetune_trainer.loops.arguments import check_arguments, training_arguments


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
    check_arguments(spec(loop="native", arguments={"weight_decay": 0.1}).training)
    message = r"spec.training.arguments.optim: loop: native does not support it; write loop: trainer"
    with pytest.raises(FineTuneError, match=message):
        check_arguments(spec(loop="native", arguments={"optim": "sgd"}).training)


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
        check_arguments(spec(loop="native", arguments=wrong).training)
    first, second, third = refused.value.message.split("; spec.training.arguments.")
    assert first.endswith("did you mean weight_decay?")
    assert second.startswith("optim: loop: native does not support it")
    assert third.startswith("adam_beta1: 'high' is wrong: ")


def test_arguments_of_users_are_applied_and_the_spec_sets_the_others(tmp_path: pathlib.Path) -> None:
    found = arguments(tmp_path, arguments={"weight_decay": 0.3}, learningRate=1e-3, warmupSteps=4)
    assert (found.weight_decay, found.learning_rate, found.max_steps, found.get_warmup_steps(40)) == (0.3, 1e-3, 40, 4)
    assert found.report_to == []


def test_tf32_is_left_unset_on_a_gpu_without_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting tf32 is an error on a T4, a V100 and AMD GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("finetune_trainer.loops.arguments.is_torch_tf32_available", lambda: False)
    monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda _: None)  # it sets the GPU up
    monkeypatch.setattr("finetune_trainer.loops.arguments.precision_flags", lambda _: {"fp16": True})
    assert arguments(tmp_path).tf32 is None


def test_arguments_that_transformers_refuses_give_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FineTuneError, match=r"spec.training.arguments \(optim\): the Trainer refuses them"):
        arguments(tmp_path, arguments={"optim": "no-such-optimizer"})
