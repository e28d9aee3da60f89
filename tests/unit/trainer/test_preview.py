"""`finetune preview`: rows as the model sees them."""

import json
import pathlib
from typing import Any

import pytest
import transformers
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune_api import names
from finetune_api.cli import main
from finetune_trainer.commands.preview import preview

WORDS = ["[UNK]", "[PAD]", "[MASK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "EU", "rejects"]


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]", "eos_token": "[SEP]"}
    directory = tmp_path / "model"
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(directory)
    transformers.BertConfig(vocab_size=len(WORDS)).save_pretrained(directory)
    return directory


def run(tmp_path: pathlib.Path, rows: list[dict[str, Any]], *options: str, **spec: Any) -> tuple[int, str]:
    """Run the command; return the exit code and the output."""
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "job"},
        "spec": {"model": {"claim": {"claimName": "m"}}, "datasets": [{"claim": {"claimName": "d"}}], **spec},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    result = CliRunner().invoke(preview, [str(tmp_path / "job.yaml"), "--claim", f"d={tmp_path / 'data'}", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_text_is_shown_with_its_class_and_the_data_with_its_statistics(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    rows = [{"text": f"a {word} film", "label": word} for word in ("good", "bad")] * 10
    code, output = run(tmp_path, rows, "--claim", f"m={model}", "--rows", "1", task="text-classification")
    assert code == 0, output
    assert "Row 1: 3 tokens\na bad film\nlabel: bad\n" in output
    assert "Row 2" not in output
    assert "18 training rows, 2 held out; 16 of them duplicates; 2 evaluation rows are also in the training data" in output
    assert "2 classes in column 'label': bad 9, good 9" in output
    assert "no row is cut" in output


def test_validate_data_says_for_what_the_labels_are_taken_and_which_field_decides(
    tmp_path: pathlib.Path, model: pathlib.Path
) -> None:
    claims = ("--claim", f"m={model}", "--claim", f"d={tmp_path / 'data'}")
    rows = [{"text": "a good film", "label": f"{number % 5}.0"} for number in range(30)]
    run(tmp_path, rows, task="text-classification")
    result = CliRunner().invoke(main, ["validate", str(tmp_path / "job.yaml"), "--data", *claims])
    assert result.exit_code == 0, result.output
    assert "1 file, 1 FineTuneJob, 0 problems" in result.output
    assert "5 classes in column 'label': 0.0 5, 1.0 5, 2.0 5, 3.0 5, 4.0 5\n" in result.output
    assert (
        "all classes are numbers; to predict a number, such as stars, write classification.problemType: Regression"
        in result.output
    )
    assert "Row 1" not in result.output
    run(tmp_path, [{**row, "label": ""} if index < 7 else row for index, row in enumerate(rows)], task="text-classification")
    result = CliRunner().invoke(main, ["validate", str(tmp_path / "job.yaml"), "--data", *claims])
    assert result.exit_code == 64
    assert "column 'label': 7 rows have no label (d.jsonl, line 1; d.jsonl, line 2;" in result.output
    result = CliRunner().invoke(main, ["validate", str(tmp_path / "job.yaml"), "--data"])
    assert (result.exit_code, "add --claim d=DIR --claim m=DIR" in result.output) == (64, True)


def test_each_word_is_shown_with_its_tag(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    rows = [{"tokens": ["EU", "rejects", "film"], "tags": ["B-ORG", "O", "O"]}] * 4
    code, output = run(tmp_path, rows, "--model-dir", str(model), task="token-classification")
    assert code == 0, output
    assert "label: EU/B-ORG rejects/O film/O" in output


def test_learned_tokens_are_marked(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    transformers.GPT2Config(vocab_size=len(WORDS), n_layer=1, n_head=1, n_embd=8).save_pretrained(model)
    rows = [{"prompt": "a good", "completion": " film"}] * 4
    code, output = run(tmp_path, rows, "--model-dir", str(model), "--rows", "1", task="sft")
    assert code == 0, output
    assert "a good⟦film [SEP]⟧" in output.replace("good ⟦", "good⟦")


def test_masked_tokens_are_marked(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    rows = [{"text": "a good film " * 20}] * 4
    code, output = run(tmp_path, rows, "--model-dir", str(model), "--rows", "1", task="masked-lm")
    assert code == 0, output
    assert "⟦[MASK]⟧" in output


def test_a_truncated_row_is_marked_as_cut(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    rows = [{"text": "good film " * 20, "label": "x"}, {"text": "bad film", "label": "y"}] * 10
    options: dict[str, Any] = {"task": "text-classification", "training": {"maxTokens": 8}}
    code, output = run(tmp_path, rows, "--model-dir", str(model), **options)
    assert code == 0, output
    assert "Row 1: 8 tokens, cut" in output
    assert "9 (50.0%) are cut at 8" in output
    assert "RowsCut: 9 of 18 training rows (50%) are cut at 8 tokens; raise spec.training.maxTokens" in output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "the file reads from claims that are not given: add --claim m=DIR"),
        (["--model-dir", "/nowhere"], "--model-dir: "),
        (["--claim", "m"], "--claim m: write NAME=DIR"),
    ],
)
def test_an_error_is_one_sentence(tmp_path: pathlib.Path, options: list[str], expected: str) -> None:
    code, output = run(tmp_path, [{"text": "a", "label": "x"}] * 3, *options, task="text-classification")
    assert code == names.EXIT_REFUSED
    assert expected in output
    assert "Traceback" not in output
