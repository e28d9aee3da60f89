"""Prints a plan on one screen."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.durations import format_duration
from finetune_api.quantities import format_bytes
from finetune_api.spec import DEFAULT_EPOCHS
from finetune_trainer.data.batches import DEFAULT_MICRO_BATCH
from finetune_trainer.plan.build import Plan
from finetune_trainer.plan.gpus import gpus_with

_MAX_GPUS_SHOWN = 3


def show_plan(console: Console, name: str, plan: Plan) -> None:
    """Print what the job needs and does, and at the end what would go wrong."""
    console.print(Text(name, style="bold underline"))
    rows = [("" if number else label, line) for label, lines in _sections(plan) for number, line in enumerate(lines)]
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        for label, line in rows:
            table.add_row(label, Text(line))
        console.print(table)
    else:  # a file or a pipe gets lines without wrapping and padding
        width = max(len(label) for label, _ in rows) + 2
        for label, line in rows:
            console.print(Text(label.ljust(width) + line), soft_wrap=True)
    for title, style, sentences in (
        ("Errors", "red", plan.refused),
        ("Warnings", "yellow", plan.warnings),
        ("Not known", "yellow", plan.unknown),
    ):
        if sentences:
            console.print(Text(title, style=f"bold {style}"))
            for sentence in sentences:
                console.print(Text(f"  {sentence}"), soft_wrap=not console.is_terminal)
    if not plan.refused:
        known = ", as far as is known" if plan.unknown else ""
        console.print(Text(f"No errors found{known}.", style="bold green"))


def _sections(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    yield "Processes", [_processes(plan)]
    yield "Batch", list(_batch(plan))
    yield "Steps", list(_steps(plan))
    yield "Memory", list(_memory(plan))
    yield "Checkpoints", list(_checkpoints(plan))
    yield "Publish", [_publish(plan)]
    yield "On failure", [_recovery(plan)]


def _processes(plan: Plan) -> str:
    distributed = plan.spec.distributed
    on = f"{distributed.gpus_per_node} GPU(s) per node" if plan.gpu else "CPU"
    per_node = plan.spec.processes_per_node
    return f"{plan.batch.world_size} = {_count(distributed.nodes, 'node')} × {_count(per_node, 'process', 'es')}, on {on}"


def _batch(plan: Plan) -> Iterator[str]:
    batch = plan.batch
    split = f"{_count(batch.world_size, 'process', 'es')} × micro-batch {batch.micro} × accumulation {batch.accumulation}"
    yield f"{_count(batch.global_batch, 'row')} per step: {split}"
    yield f"at most {plan.tokens:,} tokens per row, {plan.tokens * batch.global_batch:,} per step"
    is_open = plan.spec.training.per_device_batch_size is None
    if not plan.gpu and is_open and batch.accumulation > 1 and batch.micro < DEFAULT_MICRO_BATCH:
        yield "if all rows are shorter than that, a micro-batch holds more of them"


def _steps(plan: Plan) -> Iterator[str]:
    training, rows = plan.spec.training, plan.facts.rows
    passes = f"{training.epochs or DEFAULT_EPOCHS:g} epoch(s)"
    if plan.steps is None:
        yield f"not known: {passes}, and the number of rows is not known ({rows.reason})"
    elif training.max_steps is not None:
        yield f"{plan.steps:,} (maxSteps), {plan.warmup:,} of them warm-up"
    else:
        yield f"{plan.steps:,} = {passes} × {plan.batch.steps_per_epoch:,}, {plan.warmup:,} of them warm-up"
    about = "" if rows.exact else "about "
    classes = f"; {len(rows.classes)} classes" if rows.classes else ""
    evaluated = f", {about}{rows.evaluation:,} to evaluate on{classes}" if rows.evaluation is not None else ""
    if plan.spec.streaming:
        yield f"training rows are streamed{evaluated}"
    elif rows.train is not None:
        yield f"{about}{rows.train:,} training rows{evaluated}"


def _memory(plan: Plan) -> Iterator[str]:
    memory, model = plan.memory, plan.facts.model
    if model is None:
        yield f"not known: {plan.facts.model_reason}"
        return
    assert plan.weights is not None
    half = "" if plan.precision == "fp32" else f", computed in {plan.precision}"
    yield f"{model.parameters / 1e6:,.1f} million parameters{_held(plan)}{half}"
    if memory is None:
        least = plan.weights.frozen_bytes + 4 * plan.weights.trainable_bytes_each * plan.weights.trainable
        yield f"{format_bytes(least)} for weights, gradients and optimizer; activations are not known"
        return
    if plan.checkpointing:
        yield "activations are recomputed in the backward pass (spec.training.activationCheckpointing)"
    runtime = "CUDA" if plan.gpu else "Python and libraries"
    parts = (
        ("weights", memory.weights), ("gradients", memory.gradients), ("optimizer", memory.optimizer),
        ("activations", memory.activations), (runtime, memory.runtime),
    )  # fmt: skip
    yield " + ".join(f"{name} {format_bytes(size)}" for name, size in parts)
    yield f"= about {format_bytes(memory.total)} per {'GPU' if plan.gpu else 'process'} at most; {_fit(plan, memory.total)}"


def _held(plan: Plan) -> str:
    """Describe how the weights are held, and how many of them are trained."""
    source, weights = plan.spec.model, plan.weights
    assert weights is not None
    if source.lora is None:
        reference = ", twice: dpo compares with the model at the start" if plan.spec.task == "dpo" else ""
        return f" in {'fp32' if weights.trainable_bytes_each == 4 else 'bf16'}{reference}"
    held = f" in {source.quantization}" if source.quantization != "None" else ""
    return f"{held}, frozen; {weights.trainable / 1e6:,.1f} million in fp32 are trained (lora)"


def _fit(plan: Plan, needed: int) -> str:
    gpu, available_bytes = plan.facts.gpu, plan.available_bytes
    if available_bytes is not None:
        verdict = "fits" if needed <= available_bytes else "does not fit"
        where = (
            f"{gpu.name} with {format_bytes(available_bytes)}"
            if plan.gpu and gpu
            else f"the limit of {format_bytes(available_bytes)} each"
        )
        return f"{verdict} {where}"
    if plan.gpu:
        fitting = gpus_with(needed)
        return f"would fit {', '.join(fitting[:_MAX_GPUS_SHOWN])} and larger" if fitting else "would fit no GPU known here"
    return (
        "the pods have no memory limit"
        if plan.spec.processes_per_node == 1
        else (f"{format_bytes(needed * plan.spec.processes_per_node)} per pod, which has no memory limit")
    )


def _checkpoints(plan: Plan) -> Iterator[str]:
    checkpoint, storage, output = plan.spec.checkpoint, plan.storage, plan.spec.output
    every = _count(checkpoint.steps, "step") if checkpoint.steps is not None else format_duration(checkpoint.every_seconds or 0)
    yield f"every {every}, the newest {checkpoint.keep} kept" + (f", {format_bytes(storage.checkpoint)} each" if storage else "")
    place = f"the claim {output.claim.claim_name}" if output.claim is not None else "a new volume"
    if plan.volume_bytes is not None:
        place += f" of {format_bytes(plan.volume_bytes)}"
    if storage is None:
        yield f"on {place}"
    else:
        needed = f"{storage.checkpoints} × {format_bytes(storage.checkpoint)} + model {format_bytes(storage.model)}"
        yield f"on {place}: {format_bytes(storage.needed)} at most ({needed})"


def _publish(plan: Plan) -> str:
    publish, storage = plan.spec.publish, plan.storage
    if publish is None:
        return "nothing; the model stays in the output"
    what = ", the whole model" if publish.merge_adapter else f", {format_bytes(storage.model)}" if storage else ""
    when = ", each new best model at once" if publish.when == "OnBestCheckpoint" else ""
    endpoint = plan.spec.hub.endpoint or "the Hub"
    return f"to {publish.repository} on {endpoint}, {publish.visibility.lower()} if it is created{what}{when}"


def _recovery(plan: Plan) -> str:
    restarts = plan.spec.recovery.max_restarts
    if restarts == 0:
        return "the job fails at the first failure"
    return f"restarted from the last checkpoint up to {_count(restarts, 'time')}; if a restart can't help, the job fails at once"


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"
