"""What each training process runs: one main, top to bottom.

Started by torchrun, or directly where there is one process. Writes its reports and its failure into the RunState folder;
torchrun learns nothing but the exit code, and 0 also stands for an orderly stop (any other would be a failure to it).
"""

import logging
import os
import pathlib
import sys

import transformers

from finetune_api import metrics as declared
from finetune_api import names
from finetune_api.spec import DEFAULT_EPOCHS
from finetune_api.wire import RunConfig, Timing
from finetune_trainer.checkpoints.store import Store
from finetune_trainer.completion import answers_before, finish
from finetune_trainer.loops.arguments import COLLECTIVE_TIMEOUT_SECONDS, check_arguments, training_arguments
from finetune_trainer.loops.checkpointer import Keeper, find_resumption
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.finite import LossGuard
from finetune_trainer.loops.native import NativeLoop
from finetune_trainer.loops.trainer import TrainerLoop
from finetune_trainer.loops.watch import Watch
from finetune_trainer.models.load import load_model, save_model
from finetune_trainer.monitoring.device_stats import Meter
from finetune_trainer.monitoring.evaluation import Evaluated
from finetune_trainer.monitoring.history import record_start
from finetune_trainer.monitoring.metrics import WorkerMetrics
from finetune_trainer.monitoring.mfu import typical_length
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.output.directory import Output
from finetune_trainer.output.fence import Fence
from finetune_trainer.preparation import load_data, locate_model, plan_batches, resolve, with_checkpointing
from finetune_trainer.publish.card import write_model_card
from finetune_trainer.publish.push import BestPusher
from finetune_trainer.runtime import errors, logs
from finetune_trainer.runtime.device import has_gpu
from finetune_trainer.runtime.distributed import Control, World, join
from finetune_trainer.runtime.parent_watchdog import answer_for_stacks, end_with_launcher
from finetune_trainer.runtime.state import RunState

log = logging.getLogger(__name__)

# At the end the finished model is pushed in any case: so long for one that is still on its way.
_LAST_PUSH_SECONDS = 60.0
# After an error so long for a checkpoint that is being written: it is one to go on from.
_LAST_WRITE_SECONDS = 60.0
_WITHOUT_END_SECONDS = 31_536_000


def train(config: RunConfig, ranks: Control, state: RunState, reporter: Reporter) -> None:
    """One training from the spec to the finished model in the output directory, or to an orderly stop."""
    spec, world, output = config.spec, ranks.world, Output(pathlib.Path(config.output))
    check_arguments(spec.training)
    if spec.distributed.gpus_per_node and not has_gpu():
        log.warning("spec.distributed.gpusPerNode asks for GPUs, but torch sees none in this pod: training on the CPU")

    reporter.update(message="looking up model and data")
    fence = Fence(output.directory, state, config.attempt)
    resolved = ranks.from_rank_0(lambda: resolve(config, output, fence))
    location = locate_model(config, resolved)
    reporter.update(message="loading the data", resolved=resolved, in_place_elsewhere=_restarts_elsewhere(ranks, state))
    task, rows, eval_rows = load_data(config, location, resolved, ranks, output)

    plan, checkpointing = plan_batches(task, rows, ranks, config, state)
    total_steps = plan.total_steps(spec.training.epochs or DEFAULT_EPOCHS, spec.training.max_steps)
    resolved = resolved.model_copy(update={"global_batch_size": plan.global_batch, "per_device_batch_size": plan.micro})
    reporter.update(message="loading the model", resolved=resolved, total_steps=total_steps)
    transformers.set_seed(spec.training.seed)  # a fresh head must be the same on every rank
    task.model = load_model(task, location, with_checkpointing(spec, checkpointing))
    task.prepare_model()

    store = Store(output.checkpoints, fence, spec.checkpoint.keep)
    resumption = ranks.from_rank_0(lambda: find_resumption(store, output))
    if world.rank == 0:
        record_start(output.starts, config, resumption.step, total_steps)
    args = training_arguments(spec, plan, total_steps, output.directory)
    metrics = WorkerMetrics(config.namespace, config.name, world.rank)
    metrics.set(declared.TRAINING_INFO, 1, task=spec.task, precision=_precision(args), processes=str(world.size))
    minutes, before = spec.checkpoint.every_minutes, resumption.progress
    watch = Watch(state, reporter, metrics, ranks, output, plan.global_batch, fence, minutes and 60 * minutes)
    watch.begin_from(resumption.saved, before.timing if before else Timing(), resumption.skipped)
    metrics.attach(Meter(task.model, task.config, typical_length(rows.lengths), args.torch_compile))
    pusher = (
        BestPusher(spec, config.name, failed=lambda: metrics.count(declared.HUB_BEST_PUSH_FAILURES))
        if spec.publish and spec.publish.when == "OnBestCheckpoint"
        else None
    )

    def push_best(directory: pathlib.Path, done: Evaluated) -> None:
        write_model_card(directory, config, reporter.report, evaluator.details)
        assert pusher
        pusher.submit(directory, done.step, dict(done.figures))

    evaluator = Evaluator(
        task, eval_rows, spec.evaluation, plan, ranks, output, watch, list(before.evaluations) if before else [],
        save=lambda directory: save_model(task.model, task.tokenizer, directory),
        improved=push_best if pusher else None,
    )  # fmt: skip

    guard = LossGuard(spec.recovery, ranks, output, metrics, scaled=args.fp16)
    keeper = Keeper(store, output, resumption, ranks, watch, guard, evaluator, spec.checkpoint.steps)
    loop_type = NativeLoop if spec.training.loop == "native" else TrainerLoop
    loop = loop_type(task, rows, plan, args, ranks, watch, evaluator, guard, keeper)
    log.info(
        "%d steps of %d rows: %d process(es) × %d × %d, %s",
        total_steps, plan.global_batch, world.size, plan.micro, plan.accumulation, _precision(args),
    )  # fmt: skip
    before_training = answers_before(task, spec)
    try:
        step = loop.run()
    except Exception:
        keeper.close(_LAST_WRITE_SECONDS)
        raise

    if watch.interrupted:
        keeper.close()
        message = f"stopped on request after step {step}{_shortfall(keeper, step)}"
        log.info("%s", message)
        reporter.update(phase="Interrupted", message=message)
    else:
        assert step == total_steps or evaluator.stops_early(), "the loop ended early without a request"
        finish(config, task, loop, evaluator, step, before_training, output, reporter, ranks, fence, keeper)
    if pusher:
        pusher.close(0.0 if watch.interrupted else _LAST_PUSH_SECONDS)


def _restarts_elsewhere(ranks: Control, state: RunState) -> int:
    """Restarts in place of the other pods' processes, those for which a pod counts one for itself."""
    own = state.read_ledger().in_place
    return ranks.sums(own if ranks.world.local_rank == 0 else 0)[0] - own


def _shortfall(keeper: Keeper, step: int) -> str:
    """What an orderly stop could not save."""
    if keeper.problem is None:
        return ""
    where = f"goes on from step {keeper.saved_step}" if keeper.saved_step else "begins anew"
    return f", of which no checkpoint could be written ({keeper.problem.reason}): the training {where}"


def _precision(args: transformers.TrainingArguments) -> str:
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def configure_logging(rank: int, config: RunConfig) -> None:
    """Lines with the rank, in the job's format; other libraries speak from warnings on, ranks other than 0 likewise."""
    logs.configure(logs.speaker_of(config, f"rank {rank}", rank), config.spec.logging.format)


def main() -> int:
    """Entry point of a worker; returns the exit code."""
    world = World.from_environment()
    state = RunState.from_environment()
    answer_for_stacks(state, world.rank)
    end_with_launcher()
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    configure_logging(world.rank, config)
    reporter = Reporter(state, config.attempt, writes=world.local_rank == 0)
    try:
        reporter.update(message="waiting for the other processes" if world.size > 1 else "starting")
        # The launcher's eye is first: it can tell who is to blame, a collective that takes too long can't.
        join(world, COLLECTIVE_TIMEOUT_SECONDS + (config.spec.recovery.stall_timeout_seconds or _WITHOUT_END_SECONDS))
        ranks = Control(world)
        train(config, ranks, state, reporter)
        ranks.close()
    except Exception as error:  # the one border where every error gets a name
        failure, symptom = errors.describe(error, world.rank, os.environ.get(names.ENV_NODE_NAME))
        state.write_failure(world.rank, failure, symptom)
        log.error("%s: %s", failure.reason, failure.message, exc_info=error if failure.traceback else None)
        # Not sys.exit: a hanging collective of another thread must not keep this process alive.
        sys.stderr.flush()
        os._exit(1)
    return 0
