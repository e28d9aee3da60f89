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
from finetune_api.spec import DEFAULT_EPOCHS
from finetune_api.status import Evaluation, Resolved
from finetune_api.wire import RunConfig
from finetune_trainer import checkpoint, errors, hub
from finetune_trainer.arguments import find_model
from finetune_trainer.batches import BatchPlan
from finetune_trainer.data.load import load_data
from finetune_trainer.distributed import Control, World, join
from finetune_trainer.loops.trainer import COLLECTIVE_TIMEOUT_SECONDS, Observer, TrainerLoop, append_history, training_arguments
from finetune_trainer.metrics import WorkerMetrics
from finetune_trainer.output import Output
from finetune_trainer.progress import Reporter
from finetune_trainer.publish import write_model_card
from finetune_trainer.state import ENV_LAUNCHER_PID, RunState, write_atomically
from finetune_trainer.tasks.text_classification import ModelLocation, TextClassification

log = logging.getLogger("finetune_trainer.train")  # not __name__: this runs as __main__


def train(config: RunConfig, world: World, state: RunState, reporter: Reporter) -> None:
    """One training from the spec to the finished model in the output directory, or to an orderly stop."""
    spec = config.spec
    ranks = Control(world)
    output = Output(pathlib.Path(config.output))

    if spec.distributed.gpus_per_node and not torch.cuda.is_available():
        log.warning("spec.distributed.gpusPerNode asks for GPUs, but torch sees none in this pod: training on the CPU")

    reporter.update(message="looking up model and data")
    resolved = ranks.from_rank_0(lambda: _resolve(config, output))
    reporter.update(message="loading the data", resolved=resolved)
    data = load_data(config, list(resolved.dataset_revisions or []))
    reporter.update(message="loading the model")
    transformers.set_seed(spec.training.seed)  # a fresh head must be the same on every rank
    task = TextClassification(data, _locate_model(config, resolved), spec.training)

    plan = BatchPlan.choose(
        len(task.train_rows), spec.training.global_batch_size, world.size, spec.training.per_device_batch_size
    )
    total_steps = plan.total_steps(spec.training.epochs or DEFAULT_EPOCHS, spec.training.max_steps)
    resolved = resolved.model_copy(update={"global_batch_size": plan.global_batch, "per_device_batch_size": plan.micro})
    reporter.update(resolved=resolved, total_steps=total_steps)
    resume = ranks.from_rank_0(lambda: _prepare_checkpoints(output))

    args = training_arguments(spec.training, spec.checkpoint, plan, total_steps, checkpoint.staging_dir(output.checkpoints))
    metrics = WorkerMetrics(config.namespace, config.name, world.rank)
    metrics.set(declared.TRAINING_INFO, 1, task=spec.task, precision=_precision(args), processes=str(world.size))
    loop = TrainerLoop(task, plan, args, output, ranks, metrics, spec.checkpoint.keep)
    observer = Observer(loop, state, reporter, metrics, ranks, output)
    loop.add_callback(observer)
    log.info(
        "%d steps of %d rows: %d process(es) × %d × %d, %s",
        total_steps, plan.global_batch, world.size, plan.micro, plan.accumulation, _precision(args),
    )  # fmt: skip
    loop.train(resume_from_checkpoint=resume)

    if observer.interrupted:
        log.info("stopped on request after step %d; the checkpoint is complete", loop.state.global_step)
        reporter.update(phase="Interrupted", message=f"stopped on request after step {loop.state.global_step}")
    else:
        assert loop.state.global_step == total_steps, "the loop ended early without a request"
        _finish(config, loop, task, output, reporter, ranks, metrics)
    ranks.close()


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


def _prepare_checkpoints(output: Output) -> str | None:
    """The checkpoint to go on from, with history and staging folder as they were when it was made."""
    output.checkpoints.mkdir(exist_ok=True)
    checkpoint.discard_staging(output.checkpoints)
    newest = checkpoint.latest(output.checkpoints)
    output.truncate_history(checkpoint.step_of(newest) if newest else 0)
    if newest:
        log.info("going on from the checkpoint of step %d", checkpoint.step_of(newest))
    return str(newest) if newest else None


def _finish(
    config: RunConfig,
    loop: TrainerLoop,
    task: TextClassification,
    output: Output,
    reporter: Reporter,
    ranks: Control,
    metrics: WorkerMetrics,
) -> None:
    """Evaluate, save the model, try it on the samples, and write the report that makes the training a finished one."""
    reporter.update(message="evaluating on the held-out data", remaining_seconds=0.0)
    figures, details = loop.evaluate_rows()
    step = loop.state.global_step
    metrics.set(declared.TRAINING_EVAL_LOSS, figures["loss"])
    log.info("evaluation: %s", ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    samples = task.answer(config.spec.samples or [])
    reporter.update(
        message="saving the model",
        evaluation=Evaluation(step=step, metrics={name: round(value, 6) for name, value in figures.items()}),
        samples=samples or None,
    )
    if ranks.world.rank == 0:
        append_history(output, {"step": step, "evaluation": figures})
        write_atomically(output.evaluation, json.dumps({"step": step, "metrics": figures, **details}, indent=1))
        written = output.directory / ".model"
        shutil.rmtree(written, ignore_errors=True)
        task.model.save_pretrained(written)
        task.tokenizer.save_pretrained(written)
        write_model_card(written, config, reporter.report, details)
        output.commit_model(written)
        report = reporter.report.model_copy(update={"phase": "Succeeded", "message": None})
        write_atomically(output.report, report.model_dump_json(by_alias=True, exclude_none=True))
    ranks.barrier()
    # Only now: whoever reads this phase may rely on the model being there.
    reporter.update(phase="Publishing" if config.spec.publish else "Succeeded", message=None)


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
        train(config, world, state, reporter)
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
