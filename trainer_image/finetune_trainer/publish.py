"""The model card, and the push of the finished model to the Hub."""

import pathlib
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Published
from finetune_api.wire import Report, RunConfig
from finetune_trainer import hub


def write_model_card(directory: pathlib.Path, config: RunConfig, report: Report, details: dict[str, Any]) -> None:
    """Write README.md: what it was made from, how, and how good it is. Names of claims and of the Hub only, no paths."""
    spec = config.spec
    assert report.evaluation
    datasets = [dataset.hub.name for dataset in spec.datasets if dataset.hub]
    base = spec.model.hub.name if spec.model.hub else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=spec.task,
        base_model=base,
        datasets=datasets or None,
        tags=["finetune"],
        model_name=config.name,
        eval_results=[
            EvalResult(
                task_type=spec.task,
                dataset_type=datasets[0] if datasets else "custom",
                dataset_name=datasets[0] if datasets else "held-out data",
                metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in report.evaluation.metrics.items()
        ],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_card_body(config, report, details)) + "\n")
    card.save(directory / "README.md")


def _card_body(config: RunConfig, report: Report, details: dict[str, Any]) -> list[str]:
    spec, training = config.spec, config.spec.training
    assert report.evaluation
    resolved = report.resolved
    source = _source(spec.model, resolved.model_revision if resolved else None)
    lines = [f"# {config.name}", "", f"{spec.task.capitalize()}, fine-tuned from {source}.", "", "## Evaluation", ""]
    lines += [f"- {name}: {value:.4f}" for name, value in report.evaluation.metrics.items()]
    classes = details["classes"]
    lines += ["", "Rows are the true classes, columns the predicted ones:", ""]
    lines += ["| | " + " | ".join(classes) + " |", "|---" * (len(classes) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in zip(classes, details["confusion"], strict=True)]
    lines += ["", "## Data", ""]
    revisions = (resolved.dataset_revisions if resolved else None) or [""] * len(spec.datasets)
    lines += [f"- {_source(dataset, revision or None)}" for dataset, revision in zip(spec.datasets, revisions, strict=True)]
    lines += ["", "## Training", ""]
    lines += [f"- {name}: {value}" for name, value in training.to_wire().items()] + [f"- steps: {report.step}"]
    if report.samples:
        lines += ["", "## Samples", ""]
        lines += [f"- {' '.join(sample.text.split())} → **{sample.label}** ({sample.score:.2f})" for sample in report.samples]
    return lines


def _source(source: Any, revision: str | None) -> str:
    """A model or data set in words; of a claim its name only, as its path is the cluster's own business."""
    if source.hub:
        return f"`{source.hub.name}`" + (f" at `{revision}`" if revision else "")
    return f"the claim `{source.claim.claim_name}`"


def push(directory: pathlib.Path, spec: FineTuneJobSpec, name: str) -> Published:
    """Push a finished model. Raises FineTuneError; the model stays where it is."""
    assert spec.publish
    repository = spec.publish.repository
    with hub.explained("spec.publish", repository, Reason.HUB_PUSH_FAILED):
        api = HfApi()
        api.create_repo(repository, private=spec.publish.visibility == "Private", exist_ok=True)
        try:
            commit = api.upload_folder(repo_id=repository, folder_path=directory, commit_message=f"Fine-tuned by {name}")
        except (OSError, RuntimeError) as error:
            if isinstance(error, hub.HUB_ERRORS):
                raise
            raise FineTuneError(
                Reason.HUB_PUSH_FAILED, f"spec.publish: the push to {repository!r} failed: {str(error).splitlines()[0][:300]}"
            ) from None
    return Published(url=f"{api.endpoint}/{repository}", commit=commit.oid)
