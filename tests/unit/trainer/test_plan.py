"""`finetune plan`: what a job needs, computed from its spec and from the known facts about model and data."""

import dataclasses
import json
import pathlib
import struct
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from finetune_api import resource
from finetune_api.cli import main
from finetune_api.quantities import GIB, format_bytes, parse_quantity
from finetune_api.status import Finding
from finetune_trainer.plan.build import Facts, Plan, build_plan
from finetune_trainer.plan.gpus import Gpu, find_gpu
from finetune_trainer.plan.memory import Architecture
from finetune_trainer.plan.model import ModelFacts, describe_model
from finetune_trainer.plan.remote import _splits
from finetune_trainer.plan.rows import RowCounts
from finetune_trainer.plan.tensors import Tensor

SPEC: dict[str, Any] = {
    "task": "text-classification",
    "model": {"claim": {"claimName": "model"}},
    "datasets": [{"claim": {"claimName": "data"}}],
}
BERT = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
CONFIG = BERT | {"max_position_embeddings": 512, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
MODEL = ModelFacts(110_000_000, 85_000_000, Architecture.from_config(CONFIG, gated=False))
ROWS = RowCounts(10_000, 1_000, exact=True)


def plan(rows: RowCounts = ROWS, model: ModelFacts | None = MODEL, gpu: Gpu | None = None, **spec: Any) -> Plan:
    return build_plan(resource.parse_spec(SPEC | spec), Facts(rows, model, gpu=gpu, gpu_reason="no label"))


def test_the_split_and_the_steps_equal_those_of_the_trainer() -> None:
    made = plan(training={"globalBatchSize": 256, "epochs": 2}, distributed={"nodes": 2, "gpusPerNode": 2})
    assert (made.batch.world_size, made.batch.micro, made.batch.accumulation) == (4, 32, 2)
    assert (made.steps, made.warmup) == (80, 5)


def test_max_steps_need_no_row_count_and_epochs_do() -> None:
    unknown = RowCounts(reason="the claim data is not given")
    assert plan(unknown, training={"maxSteps": 70}).steps == 70
    assert plan(unknown).steps is None
    assert plan(unknown, training={"warmupSteps": 3}).warmup == 3


def test_a_row_has_no_more_tokens_than_the_model_has_positions() -> None:
    assert plan(training={"maxTokens": 4096}).tokens == 512
    assert plan(model=None, training={"maxTokens": 4096}).tokens == 4096


def test_the_precision_follows_the_gpu() -> None:
    gpus = {"gpusPerNode": 1}
    assert plan(gpu=find_gpu("Tesla-T4"), distributed=gpus).precision == "fp16"
    assert plan(gpu=find_gpu("NVIDIA-L4"), distributed=gpus).precision == "bf16"
    assert plan().precision == "fp32"
    assert plan(gpu=find_gpu("Tesla-T4"), distributed=gpus, training={"precision": "bf16"}).warnings
    assert plan(training={"precision": "fp16"}).refused == (
        "spec.training.precision: fp16 needs a GPU, and there is none here; write Auto, bf16 or fp32",
    )


def on_gpu(gib: int, **training: Any) -> Plan:
    return plan(gpu=Gpu("G", gib * GIB, bf16=True), distributed={"gpusPerNode": 1}, training=training)


def test_the_default_micro_batch_fits_the_gpu() -> None:
    assert (on_gpu(40).batch.micro, on_gpu(6).batch.micro) == (32, 16)
    assert (on_gpu(6).batch.global_batch, on_gpu(6).batch.accumulation) == (32, 2)
    assert (on_gpu(6).refused, on_gpu(6).checkpointing) == ((), False)


def test_a_micro_batch_that_does_not_fit_is_refused_with_one_that_fits() -> None:
    given = {"perDeviceBatchSize": 32, "activationCheckpointing": False}
    made = on_gpu(6, **given)
    assert made.memory is not None
    assert made.memory.total > 6 * GIB
    [sentence] = made.refused
    assert sentence.startswith("spec.training.perDeviceBatchSize: ")
    assert f"{made.fitting_micro_batch} fits, and trains the same model" in sentence
    assert on_gpu(6, **given | {"perDeviceBatchSize": made.fitting_micro_batch}).refused == ()


def test_activation_checkpointing_is_used_only_if_the_activations_do_not_fit_the_gpu() -> None:
    assert (on_gpu(6, perDeviceBatchSize=32).checkpointing, on_gpu(40, perDeviceBatchSize=32).checkpointing) == (True, False)
    assert plan().checkpointing is False
    assert on_gpu(6, perDeviceBatchSize=32).refused == ()
    saved, whole = on_gpu(40, activationCheckpointing=True).memory, on_gpu(40).memory
    assert saved is not None
    assert whole is not None
    assert saved == on_gpu(6, perDeviceBatchSize=32).memory
    assert saved.activations < whole.activations / 4


def test_a_model_that_fits_with_no_micro_batch_is_refused() -> None:
    [sentence] = plan(gpu=Gpu("TINY", GIB, bf16=True), distributed={"gpusPerNode": 1}).refused
    assert "a micro-batch of 1 does not fit either" in sentence


def test_on_the_cpu_the_processes_share_the_memory_limit_of_the_pod() -> None:
    pod = {"resources": {"limits": {"memory": "64Gi"}}}
    made = plan(distributed={"processesPerNode": 2}, pod=pod)
    assert made.available_bytes == 32 * GIB
    assert made.refused == ()
    [sentence] = plan(pod={"resources": {"limits": {"memory": "2Gi"}}}).refused
    assert sentence.startswith("spec.pod.resources.limits.memory: 1 × ")


def test_on_the_cpu_a_micro_batch_of_long_rows_is_small() -> None:
    made = plan()
    assert (made.batch.micro, made.batch.accumulation) == (4, 8)
    assert plan(training={"maxTokens": 64}).batch.micro == 32
    assert plan(training={"perDeviceBatchSize": 32}).batch.micro == 32


def test_a_volume_that_is_too_small_is_refused_with_the_size_to_write() -> None:
    made = plan(output={"volume": {"size": "4Gi"}}, checkpoint={"everySteps": 100, "keep": 3})
    assert made.storage is not None
    # Four checkpoints of weights and two moments in fp32, and the model, with 16 MiB of other files each.
    small = 16 * 1024**2
    assert made.storage.needed == 4 * (12 * 110_000_000 + small) + 4 * 110_000_000 + small
    [sentence] = made.refused
    assert sentence.startswith("spec.output.volume.size: 5.4 GiB are needed at once and the volume has 4.0 GiB: write 6Gi")
    assert plan(output={"claim": {"claimName": "c"}}, checkpoint={"keep": 100}).refused == ()


def test_a_short_training_has_fewer_checkpoints_than_it_may_keep() -> None:
    made = plan(training={"maxSteps": 10}, checkpoint={"everySteps": 10, "keep": 5})
    assert made.storage is not None
    assert made.storage.checkpoints == 1


def test_early_stopping_that_cannot_take_effect_is_warned_about() -> None:
    evaluation = {"best": {"metric": "loss"}, "earlyStopping": {"patience": 3}}
    [warning] = plan(training={"epochs": 2}, evaluation=evaluation).warnings
    assert warning.startswith("spec.evaluation.earlyStopping can't take effect: with patience 3 it needs at least 5 evaluations")
    assert plan(training={"epochs": 5}, evaluation=evaluation).warnings == ()


def test_what_else_the_labels_may_be_is_warned_about() -> None:
    assert plan(dataclasses.replace(ROWS, hints=("all classes are numbers",))).warnings == ("all classes are numbers",)


def test_processes_without_work_are_warned_about() -> None:
    assert plan(training={"globalBatchSize": 4}, distributed={"gpusPerNode": 8}).warnings == (
        "a batch of 4 rows leaves 4 of 8 processes without work in every step",
    )


def test_findings_about_the_rows_are_warnings() -> None:
    found = RowCounts(100, 10, exact=True, findings=(Finding(type="RareClass", message="bad has 1"),))
    assert "RareClass: bad has 1" in plan(found).warnings


def test_unknown_facts_are_listed_with_their_reason() -> None:
    made = plan(RowCounts(reason="no card"), None, distributed={"gpusPerNode": 1})
    assert made.unknown == ("rows: no card", "whether it fits: no label")
    strange = ModelFacts(1, 1, None, "config.json has no hidden_size")
    assert "activations: config.json has no hidden_size" in plan(model=strange).unknown


def test_heads_of_earlier_tasks_and_integer_tensors_are_not_counted() -> None:
    tensors = [
        Tensor("bert.encoder.layer.0.output.dense.weight", "F32", (4, 8)),
        Tensor("bert.embeddings.word_embeddings.weight", "BF16", (10, 4)),
        Tensor("bert.embeddings.position_ids", "I64", (1, 512)),
        Tensor("cls.predictions.bias", "F32", (10,)),
        Tensor("lm_head.weight", "F16", (10, 4)),
    ]
    facts = describe_model({}, tensors, "spec.model.hub")
    assert (facts.parameters, facts.linear_parameters, facts.architecture) == (72, 32, None)


@pytest.mark.parametrize(
    ("configurations", "wanted", "expected"),
    [
        ([{"splits": [{"name": "train", "num_examples": 5}]}], None, {"train": 5}),
        ([{"config_name": "en", "splits": [{"name": "train", "num_examples": 5}]}], None, {"train": 5}),
        ([{"config_name": "en", "splits": [{"name": "train", "num_examples": 5}]}], "de", None),
        ([{"config_name": "en", "splits": []}, {"config_name": "de", "splits": []}], None, None),
        (["nonsense", {"splits": "nonsense"}], None, None),
    ],
)
def test_rows_of_a_split_are_read_from_the_card_of_the_right_configuration(
    configurations: list[Any], wanted: str | None, expected: dict[str, int] | None
) -> None:
    assert _splits(configurations, wanted) == expected


@pytest.mark.parametrize(
    ("text", "size"), [("80Gi", 80 * GIB), ("1.5G", 1_500_000_000), ("1e9", 10**9), (1024, 1024), ("500m", 1), ("4Ki", 4096)]
)
def test_sizes_are_read_as_kubernetes_reads_them(text: str | int, size: int) -> None:
    assert parse_quantity(text) == size


@pytest.mark.parametrize("text", ["", "large", "1 Gi", "-1", "1GB", "1kib"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write for example 80Gi"):
        parse_quantity(text)


def test_sizes_are_shown_with_few_digits() -> None:
    assert [format_bytes(size) for size in (0, 90_852_864, 1.7 * GIB, 26 * GIB)] == ["0 B", "87 MiB", "1.7 GiB", "26 GiB"]


def write_model(folder: pathlib.Path) -> pathlib.Path:
    """Write a model directory as in a claim, with the header of the weights file and no weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header = json.dumps({"encoder.weight": {"dtype": "F32", "shape": [768, 768], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def write_job(folder: pathlib.Path, **spec: Any) -> pathlib.Path:
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}, "spec": SPEC | spec}
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["plan", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_a_plan_from_claims_is_one_screen_and_counts_the_rows_as_the_trainer_does(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [f"text {number},{'ab'[number % 2]}" for number in range(40)] + [",a"]
    (data / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    claims = ["--claim", f"model={write_model(tmp_path / 'model')}", "--claim", f"data={data}"]
    code, output = run(write_job(tmp_path, training={"globalBatchSize": 8}), *claims)
    assert code == 0
    assert "36 training rows, 4 to evaluate on; 2 classes" in output
    assert "15 = 3 epoch(s) × 5, 1 of them warm-up" in output
    assert "No errors found." in output
    assert len(output.splitlines()) < 24


def test_a_plan_without_claims_says_what_to_add(tmp_path: pathlib.Path) -> None:
    code, output = run(write_job(tmp_path))
    assert code == 0
    assert "what is in claims: add --claim data=DIR --claim model=DIR" in output


def test_the_plan_contains_what_the_trainer_would_refuse(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("body,label\na,x\n")
    claims = ["--claim", f"model={data}", "--claim", f"data={data}"]
    code, output = run(write_job(tmp_path), *claims)
    assert code == 64
    assert "spec.model.claim.path: there is no model in '.'" in output
    assert "spec.datasets[0].columns.text: the data has no column 'text'; write one of: body, label" in output


def test_the_plan_refuses_a_push_without_any_token(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, output = run(write_job(tmp_path, publish={"repository": "team/news"}))
    assert code == 64
    assert "spec.publish: a push to 'team/news' needs a token, and there is none; name a Secret in spec.hub" in output
    assert run(write_job(tmp_path, publish={"repository": "team/news"}, hub={"tokenSecretRef": {"name": "hub-token"}}))[0] == 0
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert run(write_job(tmp_path, publish={"repository": "team/news"}))[0] == 0


def test_a_wrong_file_and_wrong_options_get_one_sentence(tmp_path: pathlib.Path) -> None:
    code, output = run(write_job(tmp_path, training={"epochs": 1, "maxSteps": 1}))
    assert (code, output) == (64, f"{tmp_path}/job.json:1: spec.training: write epochs or maxSteps, not both\n")
    assert run(write_job(tmp_path), "--claim", "x")[0] == 64
    code, output = run(write_job(tmp_path), "--gpu-memory", "large")
    assert code == 2
    assert "'large' is not a size; write for example 80Gi" in output


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, struct.pack("<Q", 2) + b"[]"])
def test_weights_in_another_format_are_refused_with_a_sentence(tmp_path: pathlib.Path, content: bytes) -> None:
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(content)
    code, output = run(write_job(tmp_path), "--claim", f"model={model}")
    assert code == 64
    assert "is not a safetensors file" in output


def test_a_plan_imports_no_torch(tmp_path: pathlib.Path) -> None:
    claims = f"['--claim', 'model={write_model(tmp_path / 'model')}']"
    code = (
        "import sys; from click.testing import CliRunner; from finetune_api.cli import main;"
        f"result = CliRunner().invoke(main, ['plan', {str(write_job(tmp_path))!r}, *{claims}]);"
        "assert result.exit_code == 0, result.output; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
