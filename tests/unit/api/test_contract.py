"""The messages between operator and trainer, their shared names, and the conventions for both."""

import json
import math
import re

import pydantic
import pytest

from finetune_api import metrics, names, reasons, resource, wire
from finetune_api.status import LabelScore, describe_tags
from unit.api import spec_cases


def digest(**changes: object) -> str:
    return wire.training_digest(resource.parse_spec({**spec_cases.MINIMAL, **changes}))


def test_the_digest_ignores_how_the_batch_is_split_and_where_the_job_runs() -> None:
    assert digest() == digest(
        distributed={"nodes": 2, "gpusPerNode": 4},
        training={"perDeviceBatchSize": 4},
        checkpoint={"everySteps": 7},
        recovery={"maxRestarts": 9},
        publish={"repository": "a/b"},
        pod={"image": "x"},
        samples=[{"text": "x"}],
    )
    assert digest() == digest(
        training={"activationCheckpointing": True},
        evaluation={"everySteps": 5},
        publish={"repository": "a/b", "visibility": "Public"},
    )
    assert digest(task="sft") == digest(task="sft", sft={"packing": True}), "packed and padded rows give the same model"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"hub": {"name": "other/model"}}},
        {"datasets": [{"hub": {"name": "stanfordnlp/imdb"}, "maxTrainSamples": 5}]},
        {"training": {"seed": 1}},
        {"training": {"globalBatchSize": 16}},
        {"training": {"learningRate": 1e-4}},
        {"training": {"loop": "Native"}},
        {"training": {"arguments": {"weight_decay": 0.1}}},
        {"model": {**spec_cases.MINIMAL["model"], "lora": {}}},
        {"model": {**spec_cases.MINIMAL["model"], "lora": {}, "quantization": "nf4"}},
        {"model": {**spec_cases.MINIMAL["model"], "dtype": "bfloat16"}},
        {"datasets": [{"hub": {"name": "stanfordnlp/imdb"}, "columns": {"label": "stars"}}]},
        {"datasets": [{"hub": {"name": "stanfordnlp/imdb"}, "weight": 1.0}]},
        {"classification": {"problemType": "Regression"}},
        {"classification": {"balanced": True}},
        {"evaluation": {"best": {}}},
        {"evaluation": {"best": {}, "everySteps": 5}},
        {"evaluation": {"best": {}, "earlyStopping": {}}},
        {"task": "masked-lm"},
    ],
    ids=str,
)
def test_the_digest_changes_with_each_field_that_decides_the_model(changes: dict[str, object]) -> None:
    assert digest(**changes) != digest()


def test_specs_of_different_models_have_different_digests() -> None:
    best: list[dict[str, object]] = [{}, {"everySteps": 5}, {"earlyStopping": {}}, {"earlyStopping": {"patience": 4}}]
    assert len({digest(evaluation={"best": {}} | more) for more in best}) == len(best)
    imdb, steps = {"hub": {"name": "stanfordnlp/imdb"}}, {"maxSteps": 9}
    assert digest(datasets=[imdb], training=steps) != digest(datasets=[{**imdb, "streaming": True}], training=steps)
    blocks: list[dict[str, object]] = [
        {"task": "masked-lm"}, {"task": "masked-lm", "maskedLM": {"probability": 0.3}},
        {"task": "masked-lm", "maskedLM": {"chunk": True}},
        {"task": "dpo"}, {"task": "dpo", "dpo": {"beta": 0.2}}, {"task": "dpo", "dpo": {"lossType": "ipo"}},
        {"task": "sft"}, {"task": "sft", "sft": {"assistantOnlyLoss": False}}, {"task": "sft", "sft": {"chatTemplate": "chatml"}},
    ]  # fmt: skip
    assert len({digest(**changes) for changes in blocks}) == len(blocks)


def test_the_digest_is_the_same_with_a_default_written_out() -> None:
    assert digest() == digest(training={"seed": 42, "globalBatchSize": 32, "loop": "Trainer"})
    assert digest() == digest(model={**spec_cases.MINIMAL["model"], "dtype": "Auto", "quantization": "None"})
    assert digest() == digest(classification={"balanced": False})
    assert digest() == digest(datasets=[{"hub": {"name": "stanfordnlp/imdb"}, "columns": {"text": "text", "label": "label"}}])
    assert digest(datasets=[{"hub": {"name": "stanfordnlp/imdb"}, "streaming": False}]) == digest()
    assert digest(task="dpo") == digest(task="dpo", dpo={"beta": 0.1})


def test_the_digest_stays_the_same_across_versions() -> None:
    # The trainer finds checkpoints of an earlier version by the digest. If it changed, those checkpoints would be ignored.
    assert digest() == "4edb7e5ff327b362"


def test_a_run_file_reads_back_the_same() -> None:
    config = wire.RunConfig(
        name="x",
        namespace="y",
        spec=resource.parse_spec(spec_cases.FULL),
        nodes=2,
        processes_per_node=1,
        claims={"data": "/finetune/claims/data"},
        output="/finetune/output",
    )
    assert wire.RunConfig.model_validate_json(json.dumps(config.to_wire())) == config


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_report_never_holds_nan_or_infinity(number: float) -> None:
    with pytest.raises(pydantic.ValidationError):
        wire.Report(attempt=1, phase="Running", loss=number)
    with pytest.raises(pydantic.ValidationError):
        wire.Report.model_validate_json(json.dumps({"attempt": 1, "phase": "Running", "loss": number}))


def test_a_report_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        wire.Report.model_validate_json('{"attempt": 1, "phase": "Running", "token": "x"}')


def test_every_reason_has_an_entry_with_a_hint_of_one_sentence() -> None:
    assert set(reasons.REASONS) == set(reasons.Reason)
    for reason, info in reasons.REASONS.items():
        assert re.fullmatch(r"[A-Z][A-Za-z]+", reason)
        assert info.hint.endswith(".")


def test_the_longest_name_leaves_room_for_every_child() -> None:
    job = "a" * names.MAX_NAME_LENGTH
    assert len(names.attempt_name(job, 9999)) <= 61, "the name of an Indexed Job has at most 61 characters"
    assert len(names.pod_host_name(job, 9999, 999)) <= 63, "a host name has at most 63 characters"
    assert len(names.service_name(job)) <= 63
    assert len(names.output_claim_name(job)) <= 63


def test_no_two_children_of_different_jobs_share_a_name() -> None:
    assert names.attempt_name("news", 1) == "news-1"
    assert names.pod_host_name("news", 2, 1) == "news-2-1"


@pytest.mark.parametrize("metric", [*metrics.TRAINER_METRICS, *metrics.OPERATOR_METRICS], ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_wants_it(metric: metrics.Metric) -> None:
    assert re.fullmatch(r"finetune_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(metric.buckets)
    assert metric.help.endswith(".")
    assert not {"job", "job_name", "pod", "uid", "step"} & set(metric.labels), (
        "labels of others, or without a limit on their values"
    )
    assert "rank" not in metric.labels or metric in metrics.TRAINER_METRICS


def test_no_metric_is_declared_twice() -> None:
    declared = [metric.name for metric in (*metrics.TRAINER_METRICS, *metrics.OPERATOR_METRICS)]
    assert len(set(declared)) == len(declared)


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ({"comedy": 0.91, "war": 0.724, "drama": 0.3}, "comedy 0.91, war 0.72"),
        ({"drama": 0.3123, "war": 0.1}, "none (most likely: drama 0.31)"),
        ({}, ""),
    ],
)
def test_the_tags_of_a_text_are_shown_with_their_probabilities(scores: dict[str, float], shown: str) -> None:
    assert describe_tags([LabelScore(label=name, score=score) for name, score in scores.items()], digits=2) == shown
