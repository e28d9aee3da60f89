"""Builds a plan from a spec and the observed facts: pure arithmetic, with the trainer's own defaults and splits."""

import dataclasses
import math
from collections.abc import Iterator

from finetune_api.quantities import GIB, format_bytes, parse_quantity
from finetune_api.spec import DEFAULT_EPOCHS, FineTuneJobSpec, OutputVolume
from finetune_trainer.data.batches import BatchPlan, warmup_steps
from finetune_trainer.monitoring.schedule import useless_early_stopping
from finetune_trainer.plan.forward_pass import (
    Device,
    choose_micro_batch,
    estimate_memory,
    largest_fitting_micro_batch,
    max_row_tokens,
)
from finetune_trainer.plan.gpus import Gpu
from finetune_trainer.plan.memory import MIB, Estimate, WeightLayout
from finetune_trainer.plan.model import ModelFacts
from finetune_trainer.plan.rows import RowCounts
from finetune_trainer.plan.weights import weight_layout
from finetune_trainer.runtime.precision import Precision, choose_precision, is_half

# Tokenizer, scheduler and random number states of a checkpoint, in addition to weights and optimizer.
_SMALL_FILES_BYTES = 16 * MIB
# Factor that leaves space for the file system itself, the history and the report.
_VOLUME_RESERVE = 1.1


@dataclasses.dataclass(frozen=True)
class Facts:
    """The observed facts about data, model and GPU.

    model, gpu: None if not known; model_reason and gpu_reason say why. missing_claims: options to add for claims that are not
    given. refused: sentences about what the trainer would refuse. not_observed: sentences about what this machine can't read.
    """

    rows: RowCounts
    model: ModelFacts | None = None
    model_reason: str | None = None
    gpu: Gpu | None = None
    gpu_reason: str | None = None
    missing_claims: str | None = None
    refused: tuple[str, ...] = ()
    not_observed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes on the output volume. checkpoints: maximum number at one time, including the one that is being written."""

    checkpoint: int
    checkpoints: int
    model: int

    @property
    def needed(self) -> int:
        """Bytes at the peak."""
        return self.checkpoint * self.checkpoints + self.model


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a job.

    rows_known: whether ``batch`` is based on the real number of rows. tokens: maximum of one row. checkpointing: whether
    activations are recomputed in the backward pass. available_bytes: for one process, None if not known.
    fitting_micro_batch: the largest micro-batch that fits, if the planned one does not fit.
    """

    spec: FineTuneJobSpec
    facts: Facts
    batch: BatchPlan
    rows_known: bool
    steps: int | None
    warmup: int | None
    tokens: int
    precision: Precision
    weights: WeightLayout | None
    checkpointing: bool
    memory: Estimate | None
    available_bytes: int | None
    fitting_micro_batch: int | None
    storage: Storage | None
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def gpu(self) -> bool:
        """Whether the job trains on GPUs."""
        return self.spec.distributed.gpus_per_node > 0

    @property
    def volume_bytes(self) -> int | None:
        """Size of the volume that the operator would create; None if the user names a claim."""
        output = self.spec.output
        return None if output.claim is not None else parse_quantity((output.volume or OutputVolume()).size)


def build_plan(spec: FineTuneJobSpec, facts: Facts) -> Plan:
    """Return the whole plan. Predicted errors are in ``refused``; this function does not raise them."""
    training, rows = spec.training, facts.rows.train
    world_size = spec.distributed.nodes * spec.processes_per_node
    device = _device(spec, facts)
    # If the number of rows is not known, assume enough for one batch. Only the smallest data sets have fewer.
    split = rows or training.global_batch_size, training.global_batch_size, world_size
    batch = BatchPlan.choose(*split, training.per_device_batch_size)
    checkpointing, memory, fitting = training.activation_checkpointing is True, None, None
    if facts.model is not None:
        micro, checkpointing = choose_micro_batch(spec, facts.model, device, world_size, batch.micro)
        batch = BatchPlan.choose(*split, micro)
        memory = estimate_memory(spec, facts.model, device, world_size, batch.micro, checkpointing)
        if memory is not None and device.available_bytes is not None and memory.total > device.available_bytes:
            fitting = largest_fitting_micro_batch(spec, facts.model, device, world_size, batch.micro, checkpointing)
    steps = batch.total_steps(training.epochs or DEFAULT_EPOCHS, training.max_steps) if rows or training.max_steps else None
    weights = weight_layout(facts.model, spec, device.bf16) if facts.model is not None else None
    plan = Plan(
        spec=spec,
        facts=facts,
        batch=batch,
        rows_known=rows is not None,
        steps=steps,
        warmup=warmup_steps(training, steps) if steps is not None else training.warmup_steps,
        tokens=max_row_tokens(spec, facts.model),
        precision=_precision(spec, facts),
        weights=weights,
        checkpointing=checkpointing,
        memory=memory,
        available_bytes=device.available_bytes,
        fitting_micro_batch=fitting,
        storage=_storage(spec, facts.model, weights, steps),
    )
    return dataclasses.replace(
        plan, refused=tuple(_refused(plan)), warnings=tuple(_warnings(plan)), unknown=tuple(_unknown(plan))
    )


def _device(spec: FineTuneJobSpec, facts: Facts) -> Device:
    gpu = spec.distributed.gpus_per_node > 0
    return Device(gpu, is_half(_precision(spec, facts)), gpu and _has_bf16(facts), _available_bytes(spec, facts))


def _precision(spec: FineTuneJobSpec, facts: Facts) -> Precision:
    try:
        bf16 = _has_bf16(facts)  # what supports bf16 supports tf32
        return choose_precision(spec.training.precision, spec.distributed.gpus_per_node > 0, bf16, bf16)
    except ValueError:
        return "fp16"


def _has_bf16(facts: Facts) -> bool:
    """Whether the GPU supports bf16. A GPU that is not known is assumed to support it."""
    return facts.gpu is None or facts.gpu.bf16 is not False


def _available_bytes(spec: FineTuneJobSpec, facts: Facts) -> int | None:
    """Return the bytes for one process: the memory of its GPU, or its share of the pod's limit."""
    if spec.distributed.gpus_per_node:
        return facts.gpu.memory if facts.gpu is not None else None
    limits = (spec.pod.resources.limits if spec.pod.resources is not None else None) or {}
    try:
        return parse_quantity(limits["memory"]) // spec.processes_per_node
    except (KeyError, ValueError):
        return None


def _storage(spec: FineTuneJobSpec, model: ModelFacts | None, weights: WeightLayout | None, steps: int | None) -> Storage | None:
    if model is None or weights is None:
        return None
    every = spec.checkpoint.steps
    written = math.ceil(steps / every) if steps is not None and every is not None else spec.checkpoint.keep + 1
    return Storage(
        # The trained weights, and AdamW's two moments.
        checkpoint=3 * weights.trainable_bytes_each * weights.trainable + _SMALL_FILES_BYTES,
        checkpoints=min(spec.checkpoint.keep + 1, written),
        model=weights.trainable_bytes_each * weights.trainable + _SMALL_FILES_BYTES,
    )


def _refused(plan: Plan) -> Iterator[str]:
    spec, memory, available_bytes = plan.spec, plan.memory, plan.available_bytes
    yield from plan.facts.refused
    try:
        bf16 = _has_bf16(plan.facts)
        choose_precision(spec.training.precision, plan.gpu, bf16, bf16)
    except ValueError as error:
        yield str(error)
    if memory is not None and available_bytes is not None and memory.total > available_bytes:
        yield _too_large(plan, memory.total, available_bytes)
    if plan.storage is not None and plan.volume_bytes is not None and plan.storage.needed > plan.volume_bytes:
        size = math.ceil(plan.storage.needed * _VOLUME_RESERVE / GIB)
        yield (
            f"spec.output.volume.size: {format_bytes(plan.storage.needed)} are needed at once and the volume has "
            f"{format_bytes(plan.volume_bytes)}: write {size}Gi, or lower spec.checkpoint.keep"
        )


def _too_large(plan: Plan, needed: int, available: int) -> str:
    per_device = "spec.training.perDeviceBatchSize"
    if plan.fitting_micro_batch is not None:
        remedy = f"{plan.fitting_micro_batch} fits, and trains the same model"
    else:
        adapters = "" if plan.spec.model.lora is not None else ", add spec.model.lora: {}"
        remedy = (
            f"a micro-batch of 1 does not fit either: lower spec.training.maxTokens{adapters}, "
            "or choose a larger GPU or a smaller model"
        )
    if plan.gpu:
        assert plan.facts.gpu is not None
        return f"{per_device}: {format_bytes(needed)} do not fit {plan.facts.gpu.name} ({format_bytes(available)}): {remedy}"
    processes = plan.spec.processes_per_node
    limit = math.ceil(needed * processes * _VOLUME_RESERVE / GIB)
    return (
        f"spec.pod.resources.limits.memory: {processes} × {format_bytes(needed)} do not fit "
        f"{format_bytes(available * processes)}: "
        f"write {limit}Gi, or lower {per_device} ({remedy})"
    )


def _warnings(plan: Plan) -> Iterator[str]:
    batch = plan.batch
    if batch.global_batch < batch.world_size:
        idle = batch.world_size - batch.global_batch
        yield f"a batch of {batch.global_batch} rows leaves {idle} of {batch.world_size} processes without work in every step"
    yield from (f"{finding.type}: {finding.message}" for finding in plan.facts.rows.findings)
    gpu = plan.facts.gpu
    if plan.spec.training.precision == "bf16" and gpu is not None and gpu.bf16 is False:
        yield f"spec.training.precision: {gpu.name} only emulates bf16, slowly: write Auto or fp16"

    if plan.steps is not None and plan.rows_known:
        useless = useless_early_stopping(plan.spec.evaluation, plan.steps, plan.batch.steps_per_epoch)
        yield from [useless] if useless else []
    yield from plan.facts.rows.hints


def _unknown(plan: Plan) -> Iterator[str]:
    facts = plan.facts
    if facts.missing_claims:
        yield f"what is in claims: add {facts.missing_claims}"
    yield from facts.not_observed
    if facts.rows.train is None and facts.rows.reason and not (facts.missing_claims or facts.not_observed or facts.refused):
        yield f"rows: {facts.rows.reason}"
    if facts.model is not None and facts.model.architecture is None:
        yield f"activations: {facts.model.reason}"
    if facts.model is not None and facts.model.architecture is not None and not facts.model.architecture.measured:
        yield f"activations of a {facts.model.architecture.model_type or 'nameless'} model: estimated like a similar one"
    if plan.gpu and facts.gpu is None and facts.gpu_reason:
        yield f"whether it fits: {facts.gpu_reason}"
