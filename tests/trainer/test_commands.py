"""`finetune push`, `predict` and `evaluate` on small finished models of every task."""

import json
import pathlib
from typing import Any

import click
import pytest
import torch
import transformers
from click.testing import CliRunner, Result

from finetune_api import names
from finetune_api.resource import parse_spec
from finetune_api.wire import RunConfig
from finetune_trainer.commands.evaluate import evaluate
from finetune_trainer.commands.predict import predict
from finetune_trainer.commands.push import push
from finetune_trainer.data.load import load_data
from finetune_trainer.models import adapters

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 30522}
TAGS = ["O", "B-PER", "I-PER"]
CHATML = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def call(command: click.Command, *arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], input=stdin)


def shown(command: click.Command, *arguments: object, stdin: str | None = None) -> list[str]:
    result = call(command, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def refused(command: click.Command, *arguments: object) -> str:
    result = call(command, *arguments)
    assert result.exit_code == names.EXIT_REFUSED, result.output
    assert "Traceback" not in result.output
    assert result.stderr.count("\n") == 1, "one sentence"
    return result.stderr


def finished(directory: pathlib.Path, tokenizer: pathlib.Path, model: Any, chat_template: str | None = None) -> pathlib.Path:
    """Write an output directory with a finished model."""
    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer)
    loaded.chat_template = chat_template
    loaded.save_pretrained(directory / "model")
    model.save_pretrained(directory / "model")
    return directory


def bert(kind: str, names_of_classes: list[str] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    if names_of_classes:
        options |= {"num_labels": len(names_of_classes), "id2label": dict(enumerate(names_of_classes))}
    return getattr(transformers, f"Bert{kind}")(transformers.BertConfig(**SHAPE, **options))


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=101, eos_token_id=102)
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def classifier(tmp_path: pathlib.Path, minilm: pathlib.Path) -> pathlib.Path:
    return finished(tmp_path / "out", minilm, bert("ForSequenceClassification", ["bad", "good"]))


def test_a_classifier_prints_class_and_probability_as_a_pipeline_does(classifier: pathlib.Path) -> None:
    [line] = shown(predict, classifier, "A delight.")
    [expected] = transformers.pipeline("text-classification", str(classifier / "model"))("A delight.")
    label, score = line.split()
    assert label == expected["label"]
    assert float(score) == pytest.approx(expected["score"], abs=1e-3)
    assert shown(predict, classifier / "model", "A delight.") == [line], "DIR may be the directory of the model itself"


def test_texts_are_read_from_standard_input_and_answers_printed_as_json(classifier: pathlib.Path) -> None:
    lines = shown(predict, classifier, "-", "--json", stdin="one\n\ntwo\n")
    assert [json.loads(line)["text"] for line in lines] == ["one", "two"]
    assert {json.loads(line)["label"] for line in lines} <= {"bad", "good"}


def test_a_pair_is_one_input(classifier: pathlib.Path) -> None:
    alone, pair = shown(predict, classifier, "A"), shown(predict, classifier, "A", "--pair", "B")
    assert alone != pair


def test_a_regression_prints_a_number(tmp_path: pathlib.Path, minilm: pathlib.Path) -> None:
    model = bert("ForSequenceClassification", ["score"], problem_type="regression")
    [line] = shown(predict, finished(tmp_path, minilm, model), "A delight.")
    assert float(line) == pytest.approx(float(line))


def test_the_other_tasks_print_their_type_of_answer(tmp_path: pathlib.Path, minilm: pathlib.Path) -> None:
    [fillings] = shown(predict, finished(tmp_path / "mlm", minilm, bert("ForMaskedLM")), "A [MASK] film.")
    assert len(fillings.split("  ")) == 5
    tagger = finished(tmp_path / "ner", minilm, bert("ForTokenClassification", TAGS))
    [found] = shown(predict, tagger, "Ada wrote to Charles.")
    assert found == "(nothing found)" or found.startswith("PER: ")
    plain = finished(tmp_path / "lm", minilm, llama())
    chat = finished(tmp_path / "chat", minilm, llama(), CHATML)
    assert shown(predict, plain, "Once upon") != shown(predict, chat, "Once upon"), "a chat model gets the text in its template"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # from peft
def test_an_adapter_is_loaded_with_its_base(tmp_path: pathlib.Path, minilm: pathlib.Path) -> None:
    import peft

    base = finished(tmp_path / "base", minilm, bert("ForSequenceClassification", ["bad", "good"])) / "model"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False))
    out = tmp_path / "out" / "model"
    adapters.save(adapted, out)
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(out)
    [named] = shown(predict, out.parent, "A delight.")
    base = base.rename(tmp_path / "moved")
    assert "which is not on this machine; add --base" in refused(predict, out.parent, "A delight.")
    result = call(predict, out.parent, "A delight.", "--base", base)
    assert result.stdout.splitlines() == [named]
    [line] = result.stdout.splitlines()
    assert result.stderr == "", "no warning advises to train a finished model"
    inputs = transformers.AutoTokenizer.from_pretrained(minilm)("A delight.", return_tensors="pt")
    with torch.no_grad():
        score, number = adapted.eval()(**inputs).logits[0].softmax(dim=0).max(dim=0)
    assert line.split() == [["bad", "good"][int(number)], f"{float(score):.4f}"]


def test_wrong_input_is_refused_with_one_sentence(tmp_path: pathlib.Path, minilm: pathlib.Path, classifier: pathlib.Path) -> None:
    assert "holds no finished model" in refused(predict, tmp_path / "nowhere", "A")
    assert "was not made for any of the tasks" in refused(predict, finished(tmp_path / "base", minilm, bert("Model")), "A")
    assert "write one --pair for each TEXT" in refused(predict, classifier, "A", "B", "--pair", "C")
    filler = finished(tmp_path / "mlm", minilm, bert("ForMaskedLM"))
    assert "has no [MASK]" in refused(predict, filler, "A film.")
    assert "does not support text pairs" in refused(predict, filler, "A [MASK].", "--pair", "B")
    assert "write --to OWNER/NAME" in refused(push, classifier)
    assert "'news' is not a repository" in refused(push, classifier, "--to", "news")
    (classifier / "model" / "model.safetensors").unlink()
    assert "safetensors" in refused(predict, classifier, "A")
    assert "no complete finished model" in refused(push, classifier, "--to", "a/b")


def test_debug_raises_the_error(tmp_path: pathlib.Path) -> None:
    result = call(predict, tmp_path, "A", "--debug")
    assert result.exc_info is not None
    assert "holds no finished model" in str(result.exception)


@pytest.mark.parametrize("command", [push, predict, evaluate])
def test_help_shows_an_example(command: click.Command) -> None:
    assert f"Example:  finetune {command.name} " in "\n".join(shown(command, "--help"))


def test_an_evaluation_covers_every_row_and_writes_the_predictions(tmp_path: pathlib.Path, classifier: pathlib.Path) -> None:
    texts = [f"{'word ' * (number % 7 + 1)}{number}" for number in range(70)]
    expected = [json.loads(line)["label"] for line in shown(predict, classifier, "--json", "-", stdin="\n".join(texts) + "\n")]
    truth = ["good" if number % 3 else "bad" for number in range(70)]
    data = tmp_path / "data.csv"
    data.write_text("review,stars\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, truth, strict=True)))
    out = tmp_path / "predicted.jsonl"
    lines = shown(evaluate, classifier, data, "--column", "text=review", "--column", "label=stars", "--output", out)
    metrics = dict(line.split("  ") for line in lines if "  " in line)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(70))
    assert [row["label"] for row in rows] == expected
    assert [row["expected"] for row in rows] == truth
    assert [row["text"] for row in rows] == texts
    right = sum(label == true for label, true in zip(expected, truth, strict=True))
    assert float(metrics["accuracy"]) == pytest.approx(right / 70, abs=1e-4)


def test_data_with_a_single_class_can_be_evaluated(tmp_path: pathlib.Path, classifier: pathlib.Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {number}", "label": "good"}) + "\n" for number in range(5)))
    assert any(line.startswith("accuracy") for line in shown(evaluate, classifier, data, "--output", tmp_path / "p.jsonl"))


def test_a_language_model_has_metrics_and_no_predictions(tmp_path: pathlib.Path, minilm: pathlib.Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("Once upon a time.\nThere was a king.\n")
    lines = shown(evaluate, finished(tmp_path / "lm", minilm, llama()), data, "--output", tmp_path / "p.jsonl")
    assert any(line.startswith("perplexity") for line in lines)
    assert not (tmp_path / "p.jsonl").exists()


def test_the_evaluation_data_can_come_from_a_job(tmp_path: pathlib.Path, classifier: pathlib.Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.csv").write_text("text,label\n" + "a,good\nb,bad\nc,good\n")
    (tmp_path / "data" / "train.csv").write_text("text,label\n" + "d,good\ne,bad\n" * 5)
    job = tmp_path / "job.yaml"
    spec = {
        "task": "text-classification",
        "model": {"hub": {"name": "a/b"}},
        "datasets": [{"claim": {"claimName": "d", "path": "train.csv", "evalPath": "test.csv"}}],
    }
    resource = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "j"}, "spec": spec}
    job.write_text(json.dumps(resource))
    assert "add --claim d=DIR" in refused(evaluate, classifier, job)
    out = tmp_path / "p.jsonl"
    shown(evaluate, classifier, job, "--claim", f"d={tmp_path / 'data'}", "--output", out)
    assert [json.loads(line)["expected"] for line in out.read_text().splitlines()] == ["good", "bad", "good"]
    job.write_text(json.dumps({**resource, "spec": {**spec, "task": "masked-lm"}}))
    assert "the model is for text-classification" in refused(evaluate, classifier, job, "--claim", f"d={tmp_path / 'data'}")


def test_the_held_out_rows_of_a_job_are_those_that_it_did_not_train_on(tmp_path: pathlib.Path, classifier: pathlib.Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"text": f"row {number} " + "word " * 40, "label": ("good", "bad")[number % 2]} for number in range(40)]
    (tmp_path / "data" / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "task": "text-classification",
        "model": {"hub": {"name": "a/b"}},
        "datasets": [{"claim": {"claimName": "d", "path": "all.jsonl"}, "evalFraction": 0.25}],
        "training": {"seed": 7, "maxTokens": 16},
    }
    job, out = tmp_path / "job.yaml", tmp_path / "p.jsonl"
    job.write_text(json.dumps({"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "j"}, "spec": spec}))
    shown(evaluate, classifier, job, "--claim", f"d={tmp_path / 'data'}", "--output", out)
    config = RunConfig(
        name="j",
        namespace="n",
        spec=parse_spec(spec),
        nodes=1,
        processes_per_node=1,
        output="",
        claims={"d": str(tmp_path / "data")},
    )
    held_out = load_data(config, [""]).evaluation["text"].to_pylist()
    seen = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert [text.split()[1] for text in seen] == [text.split()[1] for text in held_out]
    assert max(len(text.split()) for text in seen) <= 16


def test_wrong_input_of_an_evaluation_is_refused_with_one_sentence(tmp_path: pathlib.Path, classifier: pathlib.Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\na,good\nb,excellent\n")
    assert "there is no" in refused(evaluate, classifier, tmp_path / "missing.csv")
    assert "write NAME=COLUMN" in refused(evaluate, classifier, data, "--column", "text")
    assert "excellent" in refused(evaluate, classifier, data)
