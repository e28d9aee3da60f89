"""Writes the model card, README.md of the model's directory: base model, data, training, evaluation and usage.

The card holds names on the Hub and names of claims, but no paths. All text from users or their data is escaped, so that it can't
break a table or add HTML and links.
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
from finetune_api.status import SampleAnswer, describe_tags
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
# Our name of a metric → the Hub's name, if it is different.
_HUB_METRICS = {"macroF1": "f1", "microF1": "f1"}
_MAX_CONFUSION_CLASSES = 20
_MAX_TABLE_CLASSES = 100
# Characters with a special meaning in Markdown or GitHub's Markdown.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~$])")


def write_model_card(directory: pathlib.Path, config: RunConfig, report: Report, details: Mapping[str, Any]) -> None:
    """Write README.md. directory: model or adapter. details: of the evaluation, from Task.compute_metrics()."""
    adapter = (directory / "adapter_config.json").is_file()
    header = _header(config, report, adapter).to_yaml()
    chat = (directory / "chat_template.jinja").is_file()
    body = "\n".join(_body(config, report, details, adapter, chat))
    (directory / README).write_text(f"---\n{header}\n---\n\n{body}\n")


def _header(config: RunConfig, report: Report, adapter: bool) -> ModelCardData:
    """Return the YAML header in the Hub's format."""
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
    if report.findings:
        yield "\n## Findings\n"
        yield from (f"- **{escape(finding.type)}**: {escape(finding.message)}" for finding in report.findings)
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
        yield "The model was not evaluated."
        return
    yield f"On held-out data, after {report.evaluation.step} steps:\n"
    yield from _metrics(report.evaluation.metrics, report.evaluation.baseline or {})
    per_class: Mapping[str, Mapping[str, float]] = details.get("perClass") or {}
    if 0 < len(per_class) <= _MAX_TABLE_CLASSES:
        metrics = list(next(iter(per_class.values())))
        yield ""
        rows = [(escape(name), *(_number(row[metric]) for metric in metrics)) for name, row in per_class.items()]
        yield from _table(("class", *map(escape, metrics)), rows)
    classes: Sequence[str] = details.get("classes") or ()
    confusion: Sequence[Sequence[int]] = details.get("confusion") or ()
    if len(confusion) == len(classes) and 0 < len(classes) <= _MAX_CONFUSION_CLASSES:
        yield "\nRows are the true classes, columns the predicted ones:\n"
        rows = [(escape(name), *map(str, row)) for name, row in zip(classes, confusion, strict=True)]
        yield from _table(("", *map(escape, classes)), rows)


def _metrics(metrics: Mapping[str, float], baseline: Mapping[str, float]) -> Iterable[str]:
    """Yield a table of the metrics, with those of the constant answer if there is one."""
    if not baseline:
        return _table(("metric", "value"), [(escape(name), _number(value)) for name, value in metrics.items()])
    constant = {name: _number(baseline[name]) if name in baseline else "" for name in metrics}
    rows = [(escape(name), _number(value), constant[name]) for name, value in metrics.items()]
    return _table(("metric", "value", "constant answer"), rows)


def _hyperparameters(spec: FineTuneJobSpec, report: Report) -> list[tuple[str, str]]:
    """Return the options that affect the result, under their names in a FineTuneJob."""
    chosen: dict[str, Any] = spec.training.to_wire()
    chosen |= chosen.pop("arguments", {})
    blocks = {"lora": spec.model.lora, "classification": spec.classification, "maskedLM": spec.masked_lm}
    for block, options in (blocks | {"sft": spec.sft, "dpo": spec.dpo}).items():
        if options is not None:
            chosen |= {f"{block}.{name}": value for name, value in options.to_wire().items() if name != "chatTemplate"}
    if spec.model.quantization != "None":
        chosen["quantization"] = spec.model.quantization
    resolved = report.resolved.to_wire() if report.resolved else {}
    chosen |= {name: resolved[name] for name in ("globalBatchSize", "perDeviceBatchSize", "processes") if name in resolved}
    chosen["steps"] = report.step
    return [(escape(name), escape(_value(value))) for name, value in chosen.items()]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value[:_MAX_TABLE_CLASSES]))
    return str(value)


def _answer(sample: SampleAnswer) -> str:
    """Format an answer for one table cell."""
    if sample.guesses is not None:
        parts = [", ".join(f"**{escape(guess.token)}** {guess.score:.2f}" for guess in sample.guesses)]
        if sample.guesses_before:
            parts.append("before: " + ", ".join(f"{escape(guess.token)} {guess.score:.2f}" for guess in sample.guesses_before))
        return "; ".join(parts)
    if sample.entities is not None:
        return ", ".join(f"{escape(entity.text)} (**{escape(entity.label)}**)" for entity in sample.entities) or "nothing"
    if sample.answer is not None:
        return escape(sample.answer)
    if sample.labels is not None:
        return escape(describe_tags(sample.labels, digits=2))
    score = f"{sample.score:.2f}" if sample.score is not None else ""
    return f"**{escape(sample.label)}** {score}".strip() if sample.label is not None else score


def _versions(adapter: bool) -> dict[str, str]:
    packages = ["torch", "transformers", *(["peft"] if adapter else [])]
    return {"finetune": __version__, **{package: importlib.metadata.version(package) for package in packages}}


def _revisions(spec: FineTuneJobSpec, report: Report) -> Sequence[str]:
    return (report.resolved.dataset_revisions if report.resolved else None) or [""] * len(spec.datasets)


def _source(source: ModelSource | Dataset, revision: str | None) -> str:
    """Describe a model or data set. For a claim, give only its name, because its path is private to the cluster."""
    if source.hub:
        return f"`{source.hub.name}`" + (f" at `{escape(revision)}`" if revision else "")
    assert source.claim
    return f"the claim `{source.claim.claim_name}`"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Yield the lines of a table. The cells are already escaped."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def escape(text: str) -> str:
    """Escape a user's text as one line of Markdown, so that it shows as it is, without HTML, tables, links or formatting."""
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    shown = _MARKDOWN.sub(r"\\\1", shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return shown.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
