"""From a spec and what was observed to a plan: pure arithmetic, with the trainer's own defaults and splits."""

import dataclasses
import math
from collections.abc import Iterator

from finetune_api.quantities import GIB, format_bytes, parse_quantity
from finetune_api.spec import DEFAULT_EPOCHS, FineTuneJobSpec, OutputVolume
from finetune_trainer.data.batches import BatchPlan, warmup_steps
from finetune_trainer.plan.gpus import Gpu
from finetune_trainer.plan.memory import MIB, Estimate, Weights
from finetune_trainer.plan.model import ModelFacts
from finetune_trainer.plan.passes import Device, choose_pass, estimate_pass, fitting_rows, longest_row
from finetune_trainer.plan.rows import Rows
from finetune_trainer.plan.weights import weigh
from finetune_trainer.runtime.precision import Precision, choose_precision

# Tokenizer, scheduler and states of the random numbers, beside weights and optimizer.
_SMALL_FILES_BYTES = 16 * MIB
# The file system's own needs, history and report.
_VOLUME_RESERVE = 1.1


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was observed. model, gpu: None where they are not known, for the given reason.

    refused: what the trainer would refuse, as sentences. unseen: what could not be looked at from here, and why.
    """

    rows: Rows
    model: ModelFacts | None = None
    model_reason: str | None = None
    gpu: Gpu | None = None
    gpu_reason: str | None = None
    missing_claims: str | None = None
    refused: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes on the output volume. checkpoints: as many as there are at once at most, the one being written included."""

    checkpoint: int
    checkpoints: int
    model: int

    @property
    def needed(self) -> int:
        """All of it at once."""
        return self.checkpoint * self.checkpoints + self.model


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job comes to. rows_known: whether batch was cut from the real number of rows. tokens: of one row at most.
    checkpointing: whether activations are computed again in the backward pass.

    room: bytes for one process, None where that is not known. fitting_micro: the largest micro-batch that has room, where the
    planned one has not.
    """

    spec: FineTuneJobSpec
    facts: Facts
    batch: BatchPlan
    rows_known: bool
    steps: int | None
    warmup: int | None
    tokens: int
    precision: Precision
    weights: Weights | None
    checkpointing: bool
    memory: Estimate | None
    room: int | None
    fitting_micro: int | None
    storage: Storage | None
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def gpu(self) -> bool:
        """Whether it trains on GPUs."""
        return self.spec.distributed.gpus_per_node > 0

    @property
    def volume_bytes(self) -> int | None:
        """Size of the volume that the operator would create; None for a claim of the user's."""
        output = self.spec.output
        return None if output.claim is not None else parse_quantity((output.volume or OutputVolume()).size)


def build_plan(spec: FineTuneJobSpec, facts: Facts) -> Plan:
    """The whole plan; what would end badly is in its ``refused``, never raised."""
    training, rows = spec.training, facts.rows.train
    world = spec.distributed.nodes * spec.processes_per_node
    device = _device(spec, facts)
    # Without the number of rows: as if there were enough for a batch, which is so but for the smallest data.
    split = rows or training.global_batch_size, training.global_batch_size, world
    batch = BatchPlan.choose(*split, training.per_device_batch_size)
    checkpointing, memory, fitting = training.activation_checkpointing is True, None, None
    if facts.model is not None:
        micro, checkpointing = choose_pass(spec, facts.model, device, world, batch.micro)
        batch = BatchPlan.choose(*split, micro)
        memory = estimate_pass(spec, facts.model, device, world, batch.micro, checkpointing)
        if memory is not None and device.room is not None and memory.total > device.room:
            fitting = fitting_rows(spec, facts.model, device, world, batch.micro, checkpointing)
    steps = batch.total_steps(training.epochs or DEFAULT_EPOCHS, training.max_steps) if rows or training.max_steps else None
    weights = weigh(facts.model, spec, device.bf16) if facts.model is not None else None
    plan = Plan(
        spec=spec,
        facts=facts,
        batch=batch,
        rows_known=rows is not None,
        steps=steps,
        warmup=warmup_steps(training, steps) if steps is not None else training.warmup_steps,
        tokens=longest_row(spec, facts.model),
        precision=_precision(spec, facts),
        weights=weights,
        checkpointing=checkpointing,
        memory=memory,
        room=device.room,
        fitting_micro=fitting,
        storage=_storage(spec, facts.model, weights, steps),
    )
    return dataclasses.replace(
        plan, refused=tuple(_refused(plan)), warnings=tuple(_warnings(plan)), unknown=tuple(_unknown(plan))
    )


def _device(spec: FineTuneJobSpec, facts: Facts) -> Device:
    gpu = spec.distributed.gpus_per_node > 0
    return Device(gpu, _precision(spec, facts) != "fp32", gpu and _has_bf16(facts), _room(spec, facts))


def _precision(spec: FineTuneJobSpec, facts: Facts) -> Precision:
    try:
        return choose_precision(spec.training.precision, spec.distributed.gpus_per_node > 0, _has_bf16(facts))
    except ValueError:
        return "fp16"


def _has_bf16(facts: Facts) -> bool:
    """Whether the GPU has it; one that is not known is taken for one that has."""
    return facts.gpu is None or facts.gpu.bf16 is not False


def _room(spec: FineTuneJobSpec, facts: Facts) -> int | None:
    """Bytes for one process: the GPU's, or its share of the pod's limit."""
    if spec.distributed.gpus_per_node:
        return facts.gpu.memory if facts.gpu is not None else None
    limits = (spec.pod.resources.limits if spec.pod.resources is not None else None) or {}
    try:
        return parse_quantity(limits["memory"]) // spec.processes_per_node
    except (KeyError, ValueError):
        return None


def _storage(spec: FineTuneJobSpec, model: ModelFacts | None, weights: Weights | None, steps: int | None) -> Storage | None:
    if model is None or weights is None:
        return None
    every = spec.checkpoint.steps
    written = math.ceil(steps / every) if steps is not None and every is not None else spec.checkpoint.keep + 1
    return Storage(
        checkpoint=3 * weights.size * weights.trained + _SMALL_FILES_BYTES,  # what is trained, and AdamW's two moments
        checkpoints=min(spec.checkpoint.keep + 1, written),
        model=weights.size * weights.trained + _SMALL_FILES_BYTES,
    )


def _refused(plan: Plan) -> Iterator[str]:
    spec, memory, room = plan.spec, plan.memory, plan.room
    yield from plan.facts.refused
    try:
        choose_precision(spec.training.precision, plan.gpu, bf16=True)
    except ValueError as error:
        yield str(error)
    if memory is not None and room is not None and memory.total > room:
        yield _too_large(plan, memory.total, room)
    if plan.storage is not None and plan.volume_bytes is not None and plan.storage.needed > plan.volume_bytes:
        size = math.ceil(plan.storage.needed * _VOLUME_RESERVE / GIB)
        yield (
            f"spec.output.volume.size: {format_bytes(plan.storage.needed)} are needed at once and the volume has "
            f"{format_bytes(plan.volume_bytes)}: write {size}Gi, or lower spec.checkpoint.keep"
        )


def _too_large(plan: Plan, needed: int, room: int) -> str:
    per_device = "spec.training.perDeviceBatchSize"
    if plan.fitting_micro is not None:
        remedy = f"{plan.fitting_micro} would fit, and give the same model"
    else:
        adapters = "" if plan.spec.model.lora is not None else ", add spec.model.lora: {}"
        remedy = f"not even 1 would fit: lower spec.training.maxTokens{adapters}, or choose a larger GPU or a smaller model"
    if plan.gpu:
        assert plan.facts.gpu is not None
        return f"{per_device}: {format_bytes(needed)} do not fit {plan.facts.gpu.name} ({format_bytes(room)}): {remedy}"
    processes = plan.spec.processes_per_node
    limit = math.ceil(needed * processes * _VOLUME_RESERVE / GIB)
    return (
        f"spec.pod.resources.limits.memory: {processes} × {format_bytes(needed)} do not fit {format_bytes(room * processes)}: "
        f"write {limit}Gi, or lower {per_device} ({remedy})"
    )


def _warnings(plan: Plan) -> Iterator[str]:
    batch = plan.batch
    if batch.global_batch < batch.world:
        idle = batch.world - batch.global_batch
        yield f"a batch of {batch.global_batch} rows leaves {idle} of {batch.world} processes without work in every step"
    gpu = plan.facts.gpu
    if plan.spec.training.precision == "bf16" and gpu is not None and gpu.bf16 is False:
        yield f"spec.training.precision: {gpu.name} only emulates bf16, slowly: write auto or fp16"


def _unknown(plan: Plan) -> Iterator[str]:
    facts = plan.facts
    if facts.missing_claims:
        yield f"what is in claims: add {facts.missing_claims}"
    yield from facts.unseen
    if facts.rows.train is None and facts.rows.reason and not (facts.missing_claims or facts.unseen or facts.refused):
        yield f"rows: {facts.rows.reason}"
    if facts.model is not None and facts.model.architecture is None:
        yield f"activations: {facts.model.reason}"
    if facts.model is not None and facts.model.architecture is not None and not facts.model.architecture.known:
        yield f"activations of a {facts.model.architecture.model_type or 'nameless'} model: they are estimated by a similar one"
    if plan.gpu and facts.gpu is None and facts.gpu_reason:
        yield f"whether it fits: {facts.gpu_reason}"
