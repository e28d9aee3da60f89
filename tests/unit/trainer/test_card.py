"""The model card of every task: the Hub can parse its header, and its tables can hold any text that users write."""

import pathlib
import re
from html import unescape
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from finetune_api import resource
from finetune_api.status import Entity, Evaluation, Finding, Guess, Resolved, SampleAnswer
from finetune_api.wire import Report, RunConfig
from finetune_trainer.publish.card import PIPELINES, escape, write_model_card

TASKS = list(PIPELINES)
REVISIONS = Resolved(model_revision="c0ffee", dataset_revisions=["d0d0", ""], global_batch_size=32, processes=4)


def config(task: str = "text-classification", **spec: Any) -> RunConfig:
    given = {
        "task": task,
        "model": {"hub": {"name": "acme/bert"}},
        "datasets": [{"hub": {"name": "acme/reviews"}}, {"claim": {"claimName": "more", "path": "secret/folder"}}],
        "publish": {"repository": "acme/out"},
    }
    return RunConfig(
        name="news",
        namespace="team",
        spec=resource.parse_spec(given | spec),
        nodes=1,
        processes_per_node=1,
        claims={"more": "/mnt/more"},
        output="/home/me/out",
    )


def card(directory: pathlib.Path, job: RunConfig, details: dict[str, Any] | None = None, **report: Any) -> str:
    fields = {"evaluation": Evaluation(step=12, metrics={"loss": 0.25, "macroF1": 0.5}), "resolved": REVISIONS, "step": 12}
    write_model_card(directory, job, Report(attempt=1, phase="Running", **fields | report), details or {})
    return (directory / "README.md").read_text()


def header(text: str) -> dict[str, Any]:
    loaded = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def adapter_in(directory: pathlib.Path) -> pathlib.Path:
    (directory / "adapter_config.json").write_text("{}")
    return directory


@pytest.mark.parametrize("task", TASKS)
def test_the_header_names_base_data_and_metrics_of_each_task(tmp_path: pathlib.Path, task: str) -> None:
    text = card(tmp_path, config(task))
    metadata = header(text)
    assert metadata["pipeline_tag"] == PIPELINES[task]  # type: ignore[index]
    assert metadata["base_model"] == "acme/bert"
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("transformers", "finetune")
    assert metadata["datasets"] == ["acme/reviews"]
    results = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results or []}
    assert results == {"loss": 0.25, "macroF1": 0.5}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("source", [{"hub": {"name": "acme/bert"}}, {"claim": {"claimName": "models"}}])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_usage_example_is_valid_python(tmp_path: pathlib.Path, task: str, source: dict[str, Any], adapter: bool) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    text = card(adapter_in(tmp_path) if adapter else tmp_path, config(task, model=source | {"lora": {}}))
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert '"acme/out"' in code
    assert ("peft" in code) is adapter


def test_the_card_of_an_adapter_says_that_it_is_an_adapter(tmp_path: pathlib.Path) -> None:
    model = {"hub": {"name": "acme/bert"}, "lora": {"rank": 4}}
    merged = card(tmp_path, config(model=model))
    assert (header(merged)["library_name"], header(merged)["base_model_relation"]) == ("transformers", "finetune")
    assert "merged LoRA adapter" in merged
    alone = card(adapter_in(tmp_path), config(model=model))
    assert (header(alone)["library_name"], header(alone)["base_model_relation"]) == ("peft", "adapter")
    assert "| lora.rank | 4 |" in alone


def test_the_card_has_revisions_metrics_classes_hyperparameters_and_versions(tmp_path: pathlib.Path) -> None:
    details = {
        "classes": ["bad", "good"],
        "confusion": [[3, 1], [0, 4]],
        "perClass": {"bad": {"precision": 1.0, "support": 4}, "good": {"precision": 0.8, "support": 4}},
    }
    text = card(tmp_path, config(training={"arguments": {"weight_decay": 0.1}}), details)
    for line in (
        "fine-tuned from `acme/bert` at `c0ffee`",
        "- `acme/reviews` at `d0d0`",
        "- the claim `more`",
        "| macroF1 | 0.5000 |",
        "| good | 0.8000 | 4 |",
        "| bad | 3 | 1 |",
        "| learningRate | 2e-05 |",
        "| weight\\_decay | 0.1 |",
        "| globalBatchSize | 32 |",
        "- torch ",
        "- finetune ",
    ):
        assert line in text
    assert "/" not in text.split("## Training")[1].split("## Versions")[0], "no local path"
    assert "secret" not in text


def test_a_confusion_matrix_of_many_classes_is_left_out(tmp_path: pathlib.Path) -> None:
    classes = [f"class{number}" for number in range(60)]
    details = {"classes": classes, "confusion": [[1] * 60] * 60, "perClass": {name: {"f1": 0.5} for name in classes}}
    text = card(tmp_path, config(), details)
    assert "| class59 | 0.5000 |" in text
    assert "columns the predicted" not in text


def test_each_kind_of_answer_is_shown(tmp_path: pathlib.Path) -> None:
    guess = Guess(token="great", score=0.75)
    samples = [
        SampleAnswer(text="a", label="good", score=0.9),
        SampleAnswer(text="b", score=3.5),
        SampleAnswer(text="c", guesses=[guess], guesses_before=[Guess(token="the", score=0.125)]),
        SampleAnswer(text="d", entities=[Entity(text="Ada", label="PER")]),
        SampleAnswer(text="e", entities=[]),
        SampleAnswer(text="f", answer="and so on"),
    ]
    table = card(tmp_path, config(), samples=samples).split("## Samples\n")[1]
    for row in (
        "| a | **good** 0.90 |",
        "| b | 3.50 |",
        "| c | **great** 0.75; before: the 0.12 |",
        "| d | Ada (**PER**) |",
        "| e | nothing |",
        "| f | and so on |",
    ):
        assert row in table


HOSTILE = (
    "</td><script>alert(1)</script> | x |\n## Evil [a](javascript:b) ![i](http://e.vil/i) `c` **d** @everyone \u202e \x1b[31m"
)


def html(text: str) -> str:
    """Render the card's body as HTML."""
    body = text.partition("---\n\n")[2]
    rendered = MarkdownIt("commonmark").enable("table").render(body)
    assert isinstance(rendered, str)
    return rendered


def test_hostile_text_of_users_does_not_break_the_page(tmp_path: pathlib.Path) -> None:
    def page(word: str) -> str:
        details = {"classes": [word, "b"], "confusion": [[1, 0], [0, 1]], "perClass": {word: {"f1": 1.0}, "b": {"f1": 1.0}}}
        samples = [SampleAnswer(text=word, label=word, score=1.0), SampleAnswer(text="c", answer=word)]
        return html(card(tmp_path, config(training={"arguments": {"note": word}}), details, samples=samples))

    hostile, plain = page(HOSTILE), page("x")
    assert re.findall(r"<[^>]*>", hostile) == re.findall(r"<[^>]*>", plain), "the tags are the same"
    shown = unescape(hostile)
    assert shown.count("</td><script>alert(1)</script> | x | ## Evil [a](javascript:b)") == 7, "the text is shown as written"
    for invisible in ("\u202e", "\x1b"):
        assert invisible not in hostile


def test_a_sample_that_looks_like_yaml_does_not_change_the_header(tmp_path: pathlib.Path) -> None:
    samples = [SampleAnswer(text="---\nlicense: mit\n---", label="x", score=1.0)]
    text = card(tmp_path, config(), samples=samples)
    assert "license" not in header(text)


def test_escaping_changes_only_markup() -> None:
    assert escape("Plain text, with (brackets): 3 + 4 = 7!") == "Plain text, with (brackets): 3 + 4 = 7!"
    assert escape("a | b\n<i>") == "a \\| b &lt;i&gt;"


def test_findings_and_the_constant_answer_are_shown_as_text(tmp_path: pathlib.Path) -> None:
    evaluation = Evaluation(step=12, metrics={"loss": 0.25, "pearson": 0.5}, baseline={"loss": 0.5})
    text = card(tmp_path, config(), evaluation=evaluation, findings=[Finding(type="RareClass", message="<b> has 1")])
    assert "## Findings\n\n- **RareClass**: &lt;b&gt; has 1\n" in text
    assert text.index("## Findings") < text.index("## How to use it")
    assert "| metric | value | constant answer |\n|---|---|---|\n| loss | 0.2500 | 0.5000 |\n| pearson | 0.5000 |  |\n" in text
