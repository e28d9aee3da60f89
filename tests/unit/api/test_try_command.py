"""The command that tries a finished model has the kind of input that the model takes."""

from typing import Any

import pytest

from finetune_api.resource import parse_spec
from finetune_api.try_command import predict_command

CLAIM = {"claim": {"claimName": "m", "path": "base"}}
MERGED = {"repository": "a/b", "mergeAdapter": True}


def spec(task: str = "text-classification", columns: dict[str, str] | None = None, **fields: Any) -> Any:
    data = {"hub": {"name": "a/data"}, "columns": columns or {}}
    return parse_spec({"task": task, "model": {"hub": {"name": "a/model"}}, "datasets": [data]} | fields)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "'Write a text here.'"),
        (spec(), "'Write a text here.'"),
        (spec("masked-lm"), "'A text with one [MASK] word.'"),
        (spec(columns={"textPair": "second"}), "'Write a text here.' --pair 'Write the second text here.'"),
        (spec(samples=[{"text": "It's good"}]), "'It'\"'\"'s good'"),
        (spec(samples=[{"text": "x" * 101}, {"text": "-r"}, {"text": "a", "textPair": "b"}]), "a --pair b"),
        (spec("sft", samples=[{"messages": [{"role": "user", "content": "Hello?"}]}]), "'Hello?'"),
        (spec(model=CLAIM), "'Write a text here.'"),
        (spec(model=CLAIM | {"lora": {}}), "'Write a text here.' --claim m=DIR"),
        (spec(model=CLAIM | {"lora": {}}, publish=MERGED), "'Write a text here.'"),
    ],
)
def test_the_command_has_the_input_of_the_task(given: Any, expected: str) -> None:
    assert predict_command("my model", given, elsewhere=True) == f"finetune predict 'my model' {expected}"


def test_on_the_machine_of_the_training_no_claim_is_asked_for() -> None:
    assert "--claim" not in predict_command("out", spec(model=CLAIM | {"lora": {}}))
