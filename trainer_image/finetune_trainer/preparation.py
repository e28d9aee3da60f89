"""Prepares a training before its first step: resolves commits, finds the model, loads the data, plans the batches."""

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_api.wire import RunConfig
from finetune_trainer.commands.arguments import find_model
from finetune_trainer.data.batches import BatchPlan
from finetune_trainer.data.prepare import Prepared, prepare
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import RowDataset
from finetune_trainer.data.stream import Stream, StreamDataset
from finetune_trainer.hub.client import resolve_revisions
from finetune_trainer.loops.arguments import precision_flags
from finetune_trainer.models.load import ModelLocation, load_config, load_tokenizer
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.output.fence import Fence
from finetune_trainer.plan.micro_batch import fit_micro_batch
from finetune_trainer.runtime.distributed import Coordinator
from finetune_trainer.runtime.state import RunState
from finetune_trainer.tasks import task_class
from finetune_trainer.tasks.base import Task


def load_data(
    config: RunConfig, location: ModelLocation, resolved: Resolved, coordinator: Coordinator, output: OutputDirectory
) -> tuple[Task, RowDataset | StreamDataset, RowDataset, DataReport, dict[str, float]]:
    """Return the task, its training rows, its evaluation rows, the report on the data, and the metrics of the constant answer.

    Rank 0 tokenises the rows for all ranks, except streamed rows. Only rank 0 has the metrics of the constant answer.
    """
    spec = config.spec
    tokenizer, model_config, task_type = load_tokenizer(location), load_config(location), task_class(spec.task)
    revisions = list(resolved.dataset_revisions or [])

    def prepare_for_this_output() -> Prepared:
        prepared = prepare(config, revisions, tokenizer, model_config, task_type)
        output.record_data(prepared.contents)
        return prepared

    prepared = coordinator.broadcast_from_rank0(prepare_for_this_output)
    task = task_type(spec, tokenizer, model_config, prepared.info)
    train_split, eval_split = prepared.open()
    seed = spec.training.seed
    baseline = task.baseline(train_split.data.table, eval_split.data.table) if coordinator.world.rank == 0 else {}
    rows, eval_rows = RowDataset(train_split, task, seed, augmented=True), RowDataset(eval_split, task, seed, augmented=False)
    if spec.streaming:
        return task, StreamDataset(Stream(config, revisions, prepared.info), rows, task), eval_rows, prepared.report, baseline
    return task, rows, eval_rows, prepared.report, baseline


def plan_batches(
    task: Task, rows: RowDataset | StreamDataset, coordinator: Coordinator, config: RunConfig, state: RunState
) -> tuple[BatchPlan, bool]:
    """Return the split of a global batch, and whether to recompute activations.

    Values that the spec does not set are chosen to fit the device.
    """
    training, world_size, count = task.spec.training, coordinator.world.size, len(rows)
    largest = BatchPlan.choose(count, training.global_batch_size, world_size, training.per_device_batch_size)
    half = any(precision_flags(training.precision).values())
    longest = int(rows.lengths.max())
    micro, checkpointing = coordinator.broadcast_from_rank0(
        lambda: fit_micro_batch(task, task.spec, world_size, largest.micro, longest, half)
    )
    known = [*coordinator.all_gather(state.micro_batch_limit()), _previous_micro_batch(config, count)]
    micro = min([micro, *(limit for limit in known if limit is not None)])
    return BatchPlan.choose(count, training.global_batch_size, world_size, micro), checkpointing


def _previous_micro_batch(config: RunConfig, rows: int) -> int | None:
    """Return the micro-batch of the previous attempt if it was smaller than planned for its number of processes, else None."""
    training, before = config.spec.training, config.resolved
    if before is None or before.per_device_batch_size is None or before.processes is None:
        return None
    planned = BatchPlan.choose(rows, training.global_batch_size, before.processes, training.per_device_batch_size).micro
    return before.per_device_batch_size if before.per_device_batch_size < planned else None


def with_activation_checkpointing(spec: FineTuneJobSpec, checkpointing: bool) -> FineTuneJobSpec:
    """Return the spec with activation checkpointing on or off, as planned."""
    training = spec.training.model_copy(update={"activation_checkpointing": checkpointing})
    return spec.model_copy(update={"training": training})


def resolve(config: RunConfig, output: OutputDirectory, fence: Fence) -> Resolved:
    """Acquire the output directory. Return the commits: from the status, else from the output directory, else the newest."""
    known = output.acquire(config)
    fence.acquire()
    resolved = resolve_revisions(config.spec, config.resolved or known)
    output.save_resolved(config, resolved)
    return resolved


def locate_model(config: RunConfig, resolved: Resolved) -> ModelLocation:
    """Return the location of the initial model: on the Hub at its commit, or in a claim."""
    source = config.spec.model
    if source.hub:
        return ModelLocation(source.hub.name, resolved.model_revision, "spec.model.hub", source.trust_remote_code)
    assert source.claim
    directory = find_model(source.claim, config.claims)
    return ModelLocation(str(directory), None, "spec.model.claim", source.trust_remote_code)
