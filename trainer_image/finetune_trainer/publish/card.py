"""The model card: what a model was made from, how, how good it is, and how to use it. README.md of the model's directory.

It holds names of the Hub and of claims, and no paths. Whatever comes from users or their data is escaped: it can break no table,
and brings neither HTML nor links.
"""

import importlib.metadata
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from finetune_api import __version__
from finetune_api.spec import Dataset, FineTuneJobSpec, ModelSource, Task
from finetune_api.status import SampleAnswer
from finetune_api.wire import Report, RunConfig
from finetune_trainer.publish.card_usage import usage
from finetune_trainer.publish.upload_filter import README, UNNAMED_REPOSITORY

PIPELINES: Mapping[Task, str] = {
    "text-classification": "text-classification",
    "token-classification": "token-classification",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "sft": "text-generation",
    "dpo": "text-generation",
}
# The Hub's names for our figures, where it has one.
_HUB_METRICS = {"macroF1": "f1", "microF1": "f1"}
_MOST_CLASSES_IN_A_MATRIX = 20
_MOST_CLASSES_IN_A_TABLE = 100
# What Markdown or GitHub's flavour of it takes for more than a letter.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$])")


def write_model_card(directory: pathlib.Path, config: RunConfig, report: Report, details: Mapping[str, Any]) -> None:
    """Write README.md. directory: of the model, or the adapter. details: of the evaluation, as Task.metrics gives them."""
    adapter = (directory / "adapter_config.json").is_file()
    header = _header(config, report, adapter).to_yaml()
    chat = (directory / "chat_template.jinja").is_file()
    body = "\n".join(_body(config, report, details, adapter, chat))
    (directory / README).write_text(f"---\n{header}\n---\n\n{body}\n")


def _header(config: RunConfig, report: Report, adapter: bool) -> ModelCardData:
    """The YAML header, by the Hub's rules."""
    spec = config.spec
    datasets = list(dict.fromkeys(dataset.hub.name for dataset in spec.datasets if dataset.hub))
    base = spec.model.hub.name if spec.model.hub else None
    relation = ("adapter" if adapter else "finetune") if base else None
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=PIPELINES[spec.task],
        base_model=base,
        base_model_relation=relation,
        datasets=datasets or None,
        tags=["finetune", spec.task, *(["lora"] if spec.model.lora else [])],
        model_name=config.name,
        eval_results=_eval_results(spec, report, datasets) or None,
    )


def _eval_results(spec: FineTuneJobSpec, report: Report, datasets: Sequence[str]) -> list[EvalResult]:
    revisions = _revisions(spec, report)
    return [
        EvalResult(
            task_type=PIPELINES[spec.task],
            dataset_type=datasets[0] if datasets else "custom",
            dataset_name=datasets[0] if datasets else "held-out data",
            dataset_revision=revisions[0] if datasets and len(spec.datasets) == 1 else None,
            metric_type=_HUB_METRICS.get(name, name),
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name, value in (report.evaluation.metrics if report.evaluation else {}).items()
        if math.isfinite(value)
    ]


def _body(config: RunConfig, report: Report, details: Mapping[str, Any], adapter: bool, chat: bool) -> Iterable[str]:
    spec = config.spec
    repository = spec.publish.repository if spec.publish else UNNAMED_REPOSITORY
    resolved = report.resolved
    yield f"# {escape(config.name)}"
    kind = "A LoRA adapter" if adapter else "A model with a merged LoRA adapter" if spec.model.lora else "A model"
    base = _source(spec.model, resolved.model_revision if resolved else None)
    yield f"\n{kind} for {spec.task}, fine-tuned from {base}."
    yield "\n## How to use it\n"
    yield usage(spec, repository, adapter, chat)
    yield "\n## Evaluation\n"
    yield from _evaluation(report, details)
    yield "\n## Data\n"
    yield from (
        f"- {_source(dataset, revision or None)}"
        for dataset, revision in zip(spec.datasets, _revisions(spec, report), strict=True)
    )
    yield "\n## Training\n"
    yield from _table(("", ""), _hyperparameters(spec, report))
    if report.samples:
        yield "\n## Samples\n"
        yield from _table(("text", "answer"), [(escape(sample.text), _answer(sample)) for sample in report.samples])
    yield "\n## Versions\n"
    yield from (f"- {name} {version}" for name, version in _versions(adapter).items())


def _evaluation(report: Report, details: Mapping[str, Any]) -> Iterable[str]:
    if report.evaluation is None:
        yield "It was not evaluated."
        return
    yield f"On held-out data, after {report.evaluation.step} steps:\n"
    yield from _table(("figure", "value"), [(escape(name), f"{value:.4f}") for name, value in report.evaluation.metrics.items()])
    per_class: Mapping[str, Mapping[str, float]] = details.get("perClass") or {}
    if 0 < len(per_class) <= _MOST_CLASSES_IN_A_TABLE:
        figures = list(next(iter(per_class.values())))
        yield ""
        rows = [(escape(name), *(_number(row[figure]) for figure in figures)) for name, row in per_class.items()]
        yield from _table(("class", *map(escape, figures)), rows)
    classes: Sequence[str] = details.get("classes") or ()
    confusion: Sequence[Sequence[int]] = details.get("confusion") or ()
    if len(confusion) == len(classes) and 0 < len(classes) <= _MOST_CLASSES_IN_A_MATRIX:
        yield "\nRows are the true classes, columns the predicted ones:\n"
        rows = [(escape(name), *map(str, row)) for name, row in zip(classes, confusion, strict=True)]
        yield from _table(("", *map(escape, classes)), rows)


def _hyperparameters(spec: FineTuneJobSpec, report: Report) -> list[tuple[str, str]]:
    """What decided over the result, by the names that a FineTuneJob has for it."""
    chosen: dict[str, Any] = spec.training.to_wire()
    chosen |= chosen.pop("arguments", {})
    blocks = {"lora": spec.model.lora, "classification": spec.classification, "maskedLM": spec.masked_lm}
    for block, options in (blocks | {"sft": spec.sft, "dpo": spec.dpo}).items():
        if options is not None:
            chosen |= {f"{block}.{name}": value for name, value in options.to_wire().items() if name != "chatTemplate"}
    if spec.model.quantization != "none":
        chosen["quantization"] = spec.model.quantization
    resolved = report.resolved.to_wire() if report.resolved else {}
    chosen |= {name: resolved[name] for name in ("globalBatchSize", "perDeviceBatchSize", "processes") if name in resolved}
    chosen["steps"] = report.step
    return [(escape(name), escape(_value(value))) for name, value in chosen.items()]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value[:_MOST_CLASSES_IN_A_TABLE]))
    return str(value)


def _answer(sample: SampleAnswer) -> str:
    """An answer in one cell of a table."""
    if sample.guesses is not None:
        told = [", ".join(f"**{escape(guess.token)}** {guess.score:.2f}" for guess in sample.guesses)]
        if sample.guesses_before:
            told.append("before: " + ", ".join(f"{escape(guess.token)} {guess.score:.2f}" for guess in sample.guesses_before))
        return "; ".join(told)
    if sample.entities is not None:
        return ", ".join(f"{escape(entity.text)} (**{escape(entity.label)}**)" for entity in sample.entities) or "nothing"
    if sample.answer is not None:
        return escape(sample.answer)
    score = f"{sample.score:.2f}" if sample.score is not None else ""
    return f"**{escape(sample.label)}** {score}".strip() if sample.label is not None else score


def _versions(adapter: bool) -> dict[str, str]:
    packages = ["torch", "transformers", *(["peft"] if adapter else [])]
    return {"finetune": __version__, **{package: importlib.metadata.version(package) for package in packages}}


def _revisions(spec: FineTuneJobSpec, report: Report) -> Sequence[str]:
    return (report.resolved.dataset_revisions if report.resolved else None) or [""] * len(spec.datasets)


def _source(source: ModelSource | Dataset, revision: str | None) -> str:
    """A model or data set in words; of a claim its name only, as its path is the cluster's own business."""
    if source.hub:
        return f"`{source.hub.name}`" + (f" at `{escape(revision)}`" if revision else "")
    assert source.claim
    return f"the claim `{source.claim.claim_name}`"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """A table of cells that are escaped already."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def escape(text: str) -> str:
    """Text of a user as Markdown that shows it, on one line: no HTML, table, link or other mark of its own."""
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    shown = _MARKDOWN.sub(r"\\\1", shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return shown.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
