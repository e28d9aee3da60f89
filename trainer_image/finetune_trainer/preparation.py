"""What a training needs before its first step: commits, model, data, and how a batch is split."""

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_api.wire import RunConfig
from finetune_trainer.commands.arguments import find_model
from finetune_trainer.data.batches import BatchPlan
from finetune_trainer.data.prepare import Prepared, prepare
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.stream import Stream, StreamRows
from finetune_trainer.hub import client as hub
from finetune_trainer.loops.arguments import precision_flags
from finetune_trainer.models.load import ModelLocation, load_config, load_tokenizer
from finetune_trainer.output.directory import Output
from finetune_trainer.output.fence import Fence
from finetune_trainer.plan.micro_batch import fit_pass
from finetune_trainer.runtime.distributed import Control
from finetune_trainer.runtime.state import RunState
from finetune_trainer.tasks import task_class
from finetune_trainer.tasks.base import Task


def load_data(
    config: RunConfig, location: ModelLocation, resolved: Resolved, ranks: Control, output: Output
) -> tuple[Task, Rows | StreamRows, Rows]:
    """The task, and its rows to train and to evaluate on. One process reads and tokenises for all, but what is streamed."""
    spec = config.spec
    tokenizer, model_config, task_type = load_tokenizer(location), load_config(location), task_class(spec.task)
    revisions = list(resolved.dataset_revisions or [])

    def prepare_for_this_output() -> Prepared:
        prepared = prepare(config, revisions, tokenizer, model_config, task_type)
        output.claim_data(prepared.contents)
        return prepared

    prepared = ranks.from_rank_0(prepare_for_this_output)
    task = task_type(spec, tokenizer, model_config, prepared.info)
    train_split, eval_split = prepared.open()
    seed = spec.training.seed
    rows, eval_rows = Rows(train_split, task, seed, varied=True), Rows(eval_split, task, seed, varied=False)
    if spec.streaming:
        return task, StreamRows(Stream(config, revisions, prepared.info), rows, task), eval_rows
    return task, rows, eval_rows


def plan_batches(
    task: Task, rows: Rows | StreamRows, ranks: Control, config: RunConfig, state: RunState
) -> tuple[BatchPlan, bool]:
    """How a global batch is split, and whether activations are computed again; what is left open is fitted to the device."""
    training, world, count = task.spec.training, ranks.world.size, len(rows)
    largest = BatchPlan.choose(count, training.global_batch_size, world, training.per_device_batch_size)
    half = any(precision_flags(training.precision).values())
    longest = int(rows.lengths.max())
    micro, checkpointing = ranks.from_rank_0(lambda: fit_pass(task, task.spec, world, largest.micro, longest, half))
    known = [*ranks.gather(state.micro_batch_limit()), _shrunk_before(config, count)]
    micro = min([micro, *(limit for limit in known if limit is not None)])
    return BatchPlan.choose(count, training.global_batch_size, world, micro), checkpointing


def _shrunk_before(config: RunConfig, rows: int) -> int | None:
    """The most rows of a forward pass in the attempt before this one, where that was less than its processes asked for."""
    training, before = config.spec.training, config.resolved
    if before is None or before.per_device_batch_size is None or before.processes is None:
        return None
    planned = BatchPlan.choose(rows, training.global_batch_size, before.processes, training.per_device_batch_size).micro
    return before.per_device_batch_size if before.per_device_batch_size < planned else None


def with_checkpointing(spec: FineTuneJobSpec, checkpointing: bool) -> FineTuneJobSpec:
    """The spec with what was found for it."""
    training = spec.training.model_copy(update={"activation_checkpointing": checkpointing})
    return spec.model_copy(update={"training": training})


def resolve(config: RunConfig, output: Output, fence: Fence) -> Resolved:
    """Commits: those of the status, else those that the output directory was begun with, else the newest."""
    known = output.claim(config)
    fence.take()
    resolved = hub.resolve(config.spec, config.resolved or known)
    output.keep_resolved(config, resolved)
    return resolved


def locate_model(config: RunConfig, resolved: Resolved) -> ModelLocation:
    """Where the model to start from is: on the Hub at its commit, or in a claim."""
    source = config.spec.model
    if source.hub:
        return ModelLocation(source.hub.name, resolved.model_revision, "spec.model.hub", source.trust_remote_code)
    assert source.claim
    directory = find_model(source.claim, config.claims)
    return ModelLocation(str(directory), None, "spec.model.claim", source.trust_remote_code)
