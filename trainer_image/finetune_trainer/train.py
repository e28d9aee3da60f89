"""The main function of a training process. It runs from top to bottom.

pod/agent.py starts the processes. A process writes its reports and its failure to the RunState folder. torchrun sees only the
exit code. An orderly stop also has exit code 0, because torchrun takes any other code for a failure.
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
from finetune_trainer.checkpoints.directory import CheckpointDirectory
from finetune_trainer.completion import baseline_answers, finish
from finetune_trainer.loops.arguments import COLLECTIVE_TIMEOUT_SECONDS, check_arguments, training_arguments
from finetune_trainer.loops.checkpointer import Checkpointer, find_resume_point
from finetune_trainer.loops.diagnosis import Diagnosis
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.loss_guard import LossGuard
from finetune_trainer.loops.monitor import TrainingMonitor
from finetune_trainer.loops.native import NativeLoop
from finetune_trainer.loops.schedule import check_schedule
from finetune_trainer.loops.trainer import TrainerLoop
from finetune_trainer.models.load import load_model, save_model
from finetune_trainer.monitoring.device_stats import DeviceStats
from finetune_trainer.monitoring.evaluation import EvaluationResult
from finetune_trainer.monitoring.history import record_start
from finetune_trainer.monitoring.metrics import WorkerMetrics
from finetune_trainer.monitoring.mfu import typical_length
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.monitoring.schedule import useless_early_stopping
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.output.fence import Fence
from finetune_trainer.preparation import load_data, locate_model, plan_batches, resolve, with_activation_checkpointing
from finetune_trainer.publish.card import write_model_card
from finetune_trainer.publish.push import BestPusher
from finetune_trainer.runtime import errors, logs
from finetune_trainer.runtime.device import require_gpu, resolve_precision
from finetune_trainer.runtime.distributed import Coordinator, World, init_process_group
from finetune_trainer.runtime.parent_watchdog import dump_stacks_on_signal, start_parent_watchdog
from finetune_trainer.runtime.state import RunState

log = logging.getLogger(__name__)

# Timeout for the push of a best model that is still running at the end. The finished model is pushed in any case.
_FINAL_PUSH_TIMEOUT_SECONDS = 60.0
# Timeout for a checkpoint that is still being written when an error ends the training. The next start can resume from it.
_FINAL_WRITE_TIMEOUT_SECONDS = 60.0
_NO_TIMEOUT_SECONDS = 31_536_000


def train(config: RunConfig, coordinator: Coordinator, state: RunState, reporter: Reporter) -> None:
    """Run one training from the spec to the finished model in the output directory, or to an orderly stop."""
    spec, world, output = config.spec, coordinator.world, OutputDirectory(pathlib.Path(config.output))
    check_schedule(spec, check_arguments(spec.training).get("lr_scheduler_kwargs"))
    if spec.distributed.gpus_per_node:
        require_gpu()

    reporter.update(message="looking up model and data")
    fence = Fence(output.directory, state, config.attempt)
    resolved = coordinator.broadcast_from_rank0(lambda: resolve(config, output, fence))
    location = locate_model(config, resolved)
    reporter.update(message="loading the data", resolved=resolved, in_place_elsewhere=_restarts_of_other_pods(coordinator, state))
    task, rows, eval_rows, data, baseline = load_data(config, location, resolved, coordinator, output)

    plan, checkpointing = plan_batches(task, rows, coordinator, config, state)
    total_steps = plan.total_steps(spec.training.epochs or DEFAULT_EPOCHS, spec.training.max_steps)
    resolved = resolved.model_copy(update={"global_batch_size": plan.global_batch, "per_device_batch_size": plan.micro})
    reporter.update(message="loading the model", resolved=resolved, total_steps=total_steps)
    transformers.set_seed(spec.training.seed)  # a new head must be the same on every rank
    with errors.model_must_fit():
        task.model = load_model(task, location, with_activation_checkpointing(spec, checkpointing))
        task.prepare_model()

    checkpoint_directory = CheckpointDirectory(output.checkpoints, fence, spec.checkpoint.keep)
    resume_point = coordinator.broadcast_from_rank0(lambda: find_resume_point(checkpoint_directory, output))
    if world.rank == 0:
        record_start(output.starts, config, resume_point.step, total_steps, list(data.lines()))
    args = training_arguments(spec, plan, total_steps, output.directory)
    precision = resolve_precision(spec.training.precision)
    metrics = WorkerMetrics(config.namespace, config.name, world.rank)
    metrics.set(declared.TRAINING_INFO, 1, task=spec.task, precision=precision, processes=str(world.size))
    seconds, before = spec.checkpoint.every_seconds, resume_point.progress
    monitor = TrainingMonitor(state, reporter, metrics, coordinator, output, plan.global_batch, fence, seconds)
    monitor.resume_from(resume_point.saved, before.timing if before else Timing(), resume_point.skipped)
    metrics.attach(DeviceStats(task.model, task.config, typical_length(rows.lengths), args.torch_compile))
    pusher = (
        BestPusher(spec, config.name, on_failure=lambda: metrics.inc(declared.HUB_BEST_PUSH_FAILURES))
        if spec.publish and spec.publish.when == "OnBestCheckpoint"
        else None
    )

    def push_best(directory: pathlib.Path, result: EvaluationResult) -> None:
        write_model_card(directory, config, reporter.report, evaluator.details)
        assert pusher
        pusher.submit(directory, result.step, dict(result.metrics))

    evaluator = Evaluator(
        task, eval_rows, spec.evaluation, plan, coordinator, output, monitor, list(before.evaluations) if before else [],
        save=lambda directory: save_model(task.model, task.tokenizer, directory),
        on_improved=push_best if pusher else None,
    )  # fmt: skip

    if world.rank == 0:
        history = output.truncate_history(resume_point.step)
        monitor.diagnosis = Diagnosis(task, data, baseline, args, history, evaluator.history, reporter)
    guard = LossGuard(spec.recovery, coordinator, output, metrics, loss_scaling=args.fp16)
    checkpointer = Checkpointer(
        checkpoint_directory, output, resume_point, coordinator, monitor, guard, evaluator, spec.checkpoint.steps
    )
    loop_type = NativeLoop if spec.training.loop == "Native" else TrainerLoop
    with errors.model_must_fit():  # it moves to the GPU
        loop = loop_type(task, rows, plan, args, coordinator, monitor, evaluator, guard, checkpointer)
    log.info(
        "%d steps of %d rows: %d process(es) × %d × %d, %s",
        total_steps, plan.global_batch, world.size, plan.micro, plan.accumulation, precision,
    )  # fmt: skip
    if warning := useless_early_stopping(spec.evaluation, total_steps, plan.steps_per_epoch):
        log.warning("%s", warning)
    answers_before = baseline_answers(task, spec)
    try:
        step = loop.run()
    except Exception:
        checkpointer.close(_FINAL_WRITE_TIMEOUT_SECONDS)
        raise

    if monitor.interrupted:
        checkpointer.close()
        message = f"stopped on request after step {step}{_describe_unsaved(checkpointer, step)}"
        log.info("%s", message)
        reporter.update(phase="Interrupted", message=message)
    else:
        assert step == total_steps or evaluator.should_stop_early(), "the loop ended early without a request"
        if reason := evaluator.early_stop(step, total_steps):
            log.info("%s", reason)
            reporter.update(stopped_early=reason)
        finish(
            config, task, loop, evaluator, step, answers_before, output, reporter, coordinator, fence, checkpointer,
            monitor.diagnosis,
        )  # fmt: skip
    if pusher:
        pusher.close(0.0 if monitor.interrupted else _FINAL_PUSH_TIMEOUT_SECONDS)


def _restarts_of_other_pods(coordinator: Coordinator, state: RunState) -> int:
    """Return how many restarts in place the other pods have counted."""
    own = state.read_restart_history().in_place
    return coordinator.all_reduce_sum(own if coordinator.world.local_rank == 0 else 0)[0] - own


def _describe_unsaved(checkpointer: Checkpointer, step: int) -> str:
    """Return what to add to the message of an orderly stop if its checkpoint could not be written."""
    if checkpointer.problem is None:
        return ""
    where = f"resumes from step {checkpointer.saved_step}" if checkpointer.saved_step else "starts from the beginning"
    return f"; its checkpoint could not be written ({checkpointer.problem.reason}): the training {where}"


def configure_logging(rank: int, config: RunConfig) -> None:
    """Configure log lines with the rank, in the job's format. Other libraries, and ranks other than 0, log from WARNING on."""
    logs.configure(logs.log_source(config, f"rank {rank}", rank), config.spec.logging.format)


def main() -> int:
    """Run a worker, and return its exit code."""
    world = World.from_environment()
    state = RunState.from_environment()
    dump_stacks_on_signal(state, world.rank)
    start_parent_watchdog()
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    configure_logging(world.rank, config)
    reporter = Reporter(state, config.attempt, writes=world.local_rank == 0)
    try:
        reporter.update(message="waiting for the other processes" if world.size > 1 else "starting")
        # The launcher must detect a stall before a collective times out: only the launcher can tell which rank is the cause.
        init_process_group(
            world,
            state.read_rendezvous_key() if world.size > 1 else b"",
            COLLECTIVE_TIMEOUT_SECONDS + (config.spec.recovery.stall_timeout_seconds or _NO_TIMEOUT_SECONDS),
        )
        coordinator = Coordinator(world)
        train(config, coordinator, state, reporter)
        coordinator.close()
    except Exception as error:  # the only place where an error becomes a reported failure
        failure, secondary = errors.describe(error, world.rank, os.environ.get(names.ENV_NODE_NAME))
        state.write_failure(world.rank, failure, secondary)
        log.error("%s: %s", failure.reason, failure.message, exc_info=error if failure.traceback else None)
        # Not sys.exit: a collective that hangs in another thread must not keep this process alive.
        sys.stderr.flush()
        os._exit(1)
    return 0
