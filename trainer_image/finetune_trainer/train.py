"""What each training process runs: one main, top to bottom.

Started by torchrun, or directly where there is one process. Writes its reports and its failure into the RunState folder;
torchrun learns nothing but the exit code, and 0 also stands for an orderly stop (any other would be a failure to it).
"""

import json
import logging
import os
import pathlib
import shutil
import sys
import threading
import time

import torch
import transformers

from finetune_api import metrics as declared
from finetune_api import names
from finetune_api.spec import DEFAULT_EPOCHS, FineTuneJobSpec
from finetune_api.status import Resolved, SampleAnswer
from finetune_api.wire import RunConfig
from finetune_trainer import checkpoint, errors, hub
from finetune_trainer.adapters import merged
from finetune_trainer.arguments import find_model
from finetune_trainer.batches import BatchPlan
from finetune_trainer.card import write_model_card
from finetune_trainer.data.prepare import prepare
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.stream import Stream, StreamRows
from finetune_trainer.distributed import Control, World, join
from finetune_trainer.fit import fit_to_gpu
from finetune_trainer.loops import Loop
from finetune_trainer.loops.arguments import COLLECTIVE_TIMEOUT_SECONDS, check_arguments, precision_flags, training_arguments
from finetune_trainer.loops.best import Evaluated
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.native import NativeLoop
from finetune_trainer.loops.trainer import TrainerLoop
from finetune_trainer.loops.watch import Watch, evaluation_status
from finetune_trainer.metrics import WorkerMetrics
from finetune_trainer.models import ModelLocation, load_config, load_model, load_tokenizer, save_model
from finetune_trainer.output import Output
from finetune_trainer.progress import Reporter
from finetune_trainer.publish import BestPusher
from finetune_trainer.state import ENV_LAUNCHER_PID, RunState, write_atomically
from finetune_trainer.tasks import task_class
from finetune_trainer.tasks.base import Task
from finetune_trainer.weights import load_weights

log = logging.getLogger("finetune_trainer.train")  # not __name__: this runs as __main__

# At the end the finished model is pushed in any case: so long for one that is still on its way.
_LAST_PUSH_SECONDS = 60.0


def train(config: RunConfig, ranks: Control, state: RunState, reporter: Reporter) -> None:
    """One training from the spec to the finished model in the output directory, or to an orderly stop."""
    spec, world, output = config.spec, ranks.world, Output(pathlib.Path(config.output))
    check_arguments(spec.training)
    if spec.distributed.gpus_per_node and not torch.cuda.is_available():
        log.warning("spec.distributed.gpusPerNode asks for GPUs, but torch sees none in this pod: training on the CPU")

    reporter.update(message="looking up model and data")
    resolved = ranks.from_rank_0(lambda: _resolve(config, output))
    location = _locate_model(config, resolved)
    reporter.update(message="loading the data", resolved=resolved)
    task, rows, eval_rows = _load_data(config, location, resolved, ranks)

    plan, checkpointing = _plan_batches(task, len(rows), ranks)
    total_steps = plan.total_steps(spec.training.epochs or DEFAULT_EPOCHS, spec.training.max_steps)
    resolved = resolved.model_copy(update={"global_batch_size": plan.global_batch, "per_device_batch_size": plan.micro})
    reporter.update(message="loading the model", resolved=resolved, total_steps=total_steps)
    transformers.set_seed(spec.training.seed)  # a fresh head must be the same on every rank
    task.model = load_model(task, location, _with_checkpointing(spec, checkpointing))
    task.prepare_model()

    resume, history = ranks.from_rank_0(lambda: _prepare_checkpoints(output))
    args = training_arguments(spec, plan, total_steps, checkpoint.staging_dir(output.checkpoints))
    metrics = WorkerMetrics(config.namespace, config.name, world.rank)
    metrics.set(declared.TRAINING_INFO, 1, task=spec.task, precision=_precision(args), processes=str(world.size))
    watch = Watch(state, reporter, metrics, ranks, output, plan.global_batch)
    pusher = BestPusher(spec, config.name) if spec.publish and spec.publish.when == "OnBestCheckpoint" else None
    evaluator = Evaluator(
        task, eval_rows, spec.evaluation, plan, ranks, output, watch, history,
        save=lambda directory: save_model(task.model, task.tokenizer, directory),
        improved=pusher and (lambda directory, done: pusher.submit(directory, done.step, dict(done.figures))),
    )  # fmt: skip
    loop_type = NativeLoop if spec.training.loop == "native" else TrainerLoop
    loop = loop_type(task, rows, plan, args, output, ranks, watch, evaluator, spec.checkpoint.keep)
    log.info(
        "%d steps of %d rows: %d process(es) × %d × %d, %s",
        total_steps, plan.global_batch, world.size, plan.micro, plan.accumulation, _precision(args),
    )  # fmt: skip
    before = _answers_before(task, spec)
    step = loop.run(pathlib.Path(resume) if resume else None)

    if watch.interrupted:
        log.info("stopped on request after step %d; the checkpoint is complete", step)
        reporter.update(phase="Interrupted", message=f"stopped on request after step {step}")
    else:
        assert step == total_steps or evaluator.stops_early(), "the loop ended early without a request"
        _finish(config, task, loop, evaluator, step, before, output, reporter, ranks)
    if pusher:
        pusher.close(0.0 if watch.interrupted else _LAST_PUSH_SECONDS)


def _load_data(
    config: RunConfig, location: ModelLocation, resolved: Resolved, ranks: Control
) -> tuple[Task, Rows | StreamRows, Rows]:
    """The task, and its rows to train and to evaluate on. One process reads and tokenises for all, but what is streamed."""
    spec = config.spec
    tokenizer, model_config, task_type = load_tokenizer(location), load_config(location), task_class(spec.task)
    revisions = list(resolved.dataset_revisions or [])
    prepared = ranks.from_rank_0(lambda: prepare(config, revisions, tokenizer, model_config, task_type))
    task = task_type(spec, tokenizer, model_config, prepared.info)
    train_split, eval_split = prepared.open()
    seed = spec.training.seed
    rows, eval_rows = Rows(train_split, task, seed, varied=True), Rows(eval_split, task, seed, varied=False)
    if spec.streaming:
        return task, StreamRows(Stream(config, revisions, prepared.info), rows, task), eval_rows
    return task, rows, eval_rows


def _plan_batches(task: Task, rows: int, ranks: Control) -> tuple[BatchPlan, bool]:
    """How a global batch is split, and whether activations are computed again; what the job leaves open is fitted to the GPU."""
    training, world = task.spec.training, ranks.world.size
    largest = BatchPlan.choose(rows, training.global_batch_size, world, training.per_device_batch_size)
    half = any(precision_flags(training.precision).values())
    micro, checkpointing = ranks.from_rank_0(lambda: fit_to_gpu(task, task.spec, world, largest.micro, half))
    return BatchPlan.choose(rows, training.global_batch_size, world, micro), checkpointing


def _with_checkpointing(spec: FineTuneJobSpec, checkpointing: bool) -> FineTuneJobSpec:
    training = spec.training.model_copy(update={"activation_checkpointing": checkpointing})
    return spec.model_copy(update={"training": training})


def _resolve(config: RunConfig, output: Output) -> Resolved:
    """Commits: those of the status, else those that the output directory was begun with, else the newest."""
    known = output.claim(config)
    resolved = hub.resolve(config.spec, config.resolved or known)
    output.keep_resolved(config, resolved)
    return resolved


def _locate_model(config: RunConfig, resolved: Resolved) -> ModelLocation:
    source = config.spec.model
    if source.hub:
        return ModelLocation(source.hub.name, resolved.model_revision, "spec.model.hub", source.trust_remote_code)
    assert source.claim
    directory = find_model(source.claim, config.claims)
    return ModelLocation(str(directory), None, "spec.model.claim", source.trust_remote_code)


def _prepare_checkpoints(output: Output) -> tuple[str | None, list[Evaluated]]:
    """The checkpoint to go on from, with history and staging folder as they were when it was made, and the evaluations so far."""
    output.checkpoints.mkdir(exist_ok=True)
    checkpoint.discard_staging(output.checkpoints)
    newest = checkpoint.latest(output.checkpoints)
    entries = output.truncate_history(checkpoint.step_of(newest) if newest else -1)
    if newest:
        log.info("going on from the checkpoint of step %d", checkpoint.step_of(newest))
    evaluations = [Evaluated(entry["step"], entry["evaluation"]) for entry in entries if "evaluation" in entry]
    return str(newest) if newest else None, evaluations


def _finish(
    config: RunConfig,
    task: Task,
    loop: Loop,
    evaluator: Evaluator,
    step: int,
    before: list[SampleAnswer],
    output: Output,
    reporter: Reporter,
    ranks: Control,
) -> None:
    """Take the best model, try it on the samples, save it, and write the report that makes the training a finished one."""
    reporter.update(message="evaluating on the held-out data", remaining_seconds=0.0)
    step, figures = _choose_model(task, loop, evaluator, output, step)
    reporter.update(message="saving the model", evaluation=evaluation_status(Evaluated(step, figures)))
    task.model.eval()
    reporter.update(samples=_answers(task, config.spec, before))
    if ranks.world.rank == 0:
        write_atomically(output.evaluation, json.dumps({"step": step, "metrics": figures, **evaluator.details}, indent=1))
        written = output.directory / ".model"
        shutil.rmtree(written, ignore_errors=True)
        merge = config.spec.publish is not None and config.spec.publish.merge_adapter
        save_model(merged(task.model) if merge else task.model, task.tokenizer, written)
        write_model_card(written, config, reporter.report, evaluator.details)
        output.commit_model(written)
        report = reporter.report.model_copy(update={"phase": "Succeeded", "message": None})
        write_atomically(output.report, report.model_dump_json(by_alias=True, exclude_none=True))
    ranks.barrier()
    # Only now: whoever reads this phase may rely on the model being there.
    reporter.update(phase="Publishing" if config.spec.publish else "Succeeded", message=None)


def _choose_model(task: Task, loop: Loop, evaluator: Evaluator, output: Output, step: int) -> tuple[int, dict[str, float]]:
    """Put the best model's weights in the place of the last ones, where one was asked for; its step and figures."""
    best, last = evaluator.standing, evaluator.last
    if best is not None and best.step != step:
        log.info("the best model is that of step %d: it is the finished one", best.step)
        load_weights(task.model, output.best_model(best.step))
        return best.step, loop.evaluate_again()
    if last is not None and last.step == step and evaluator.details:
        return step, dict(last.figures)
    return step, loop.evaluate_again()


def _answers_before(task: Task, spec: FineTuneJobSpec) -> list[SampleAnswer]:
    """What a masked language model fills in before it has learned anything; other tasks have nothing to compare."""
    if spec.task != "masked-lm" or not spec.samples:
        return []
    task.model.eval()
    return task.answer(spec.samples)


def _answers(task: Task, spec: FineTuneJobSpec, before: list[SampleAnswer]) -> list[SampleAnswer] | None:
    if not spec.samples:
        return None
    answers = task.answer(spec.samples)
    for index, was in enumerate(before):
        answers[index] = answers[index].model_copy(update={"guesses_before": was.guesses})
    return answers


def _precision(args: transformers.TrainingArguments) -> str:
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def configure_logging(rank: int) -> None:
    """Plain lines with the rank; other libraries speak from warnings on, ranks other than 0 likewise."""
    logging.basicConfig(
        format=f"%(asctime)s rank {rank} %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ", stream=sys.stderr, force=True
    )
    logging.Formatter.converter = time.gmtime
    logging.getLogger("finetune_trainer").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    transformers.logging.set_verbosity_error()


def end_with_launcher() -> None:
    """End when the launcher is gone, however it ended: nobody would watch, stop or report this process any more."""
    launcher = int(os.environ[ENV_LAUNCHER_PID])

    def watch() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(launcher, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def main() -> int:
    """Entry point of a worker; returns the exit code."""
    end_with_launcher()
    world = World.from_environment()
    state = RunState.from_environment()
    configure_logging(world.rank)
    config = RunConfig.model_validate_json(pathlib.Path(os.environ[names.ENV_RUN_FILE]).read_text())
    reporter = Reporter(state, config.attempt, writes=world.local_rank == 0)
    try:
        reporter.update(message="waiting for the other processes" if world.size > 1 else "starting")
        join(world, COLLECTIVE_TIMEOUT_SECONDS)
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


if __name__ == "__main__":
    sys.exit(main())
