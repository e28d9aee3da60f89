"""Completes a training after its last step: chooses the best model, answers the samples, saves the model, writes the report."""

import json
import logging
import shutil

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import SampleAnswer
from finetune_api.wire import RunConfig
from finetune_trainer.loops import Loop
from finetune_trainer.loops.checkpointer import Checkpointer
from finetune_trainer.loops.diagnosis import Diagnosis
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.models.adapters import merge_adapters
from finetune_trainer.models.load import save_model
from finetune_trainer.models.weights import load_weights
from finetune_trainer.monitoring.evaluation import EvaluationResult, evaluation_status
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.output.directory import OutputDirectory
from finetune_trainer.output.fence import Fence
from finetune_trainer.publish.card import write_model_card
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Coordinator
from finetune_trainer.runtime.state import write_atomically
from finetune_trainer.tasks.base import Task

log = logging.getLogger(__name__)


def finish(
    config: RunConfig,
    task: Task,
    loop: Loop,
    evaluator: Evaluator,
    step: int,
    answers_before: list[SampleAnswer],
    output: OutputDirectory,
    reporter: Reporter,
    coordinator: Coordinator,
    fence: Fence,
    checkpointer: Checkpointer,
    diagnosis: Diagnosis | None,
) -> None:
    """Choose the best model, answer the samples, save the model, and write the report that marks the training as finished."""
    reporter.update(message="evaluating on the held-out data", remaining_seconds=0.0)
    step, metrics = _choose_model(task, loop, evaluator, output, step)
    chosen, baseline = EvaluationResult(step, metrics), diagnosis.baseline if diagnosis is not None else {}
    if diagnosis is not None:
        diagnosis.conclude(chosen, evaluator.details)
    reporter.update(message="saving the model", evaluation=evaluation_status(chosen, baseline))
    task.model.eval()
    reporter.update(samples=_answers(task, config.spec, answers_before))
    checkpointer.close()
    heartbeat.beat(heartbeat.WRITING)
    if coordinator.world.rank == 0:
        fence.check()
        evaluation = {"step": step, "metrics": metrics, **({"baseline": baseline} if baseline else {}), **evaluator.details}
        write_atomically(output.evaluation, json.dumps(evaluation, indent=1))
        written = output.directory / ".model"
        shutil.rmtree(written, ignore_errors=True)
        merge = config.spec.publish is not None and config.spec.publish.merge_adapter
        save_model(merge_adapters(task.model) if merge else task.model, task.tokenizer, written)
        write_model_card(written, config, reporter.report, evaluator.details)
        fence.check()
        output.commit_model(written)
        report = reporter.report.model_copy(update={"phase": "Succeeded", "message": None, "checkpoint_problem": None})
        write_atomically(output.report, report.model_dump_json(by_alias=True, exclude_none=True))
    coordinator.barrier()
    # The phase is updated last, because its readers expect that the model exists.
    reporter.update(phase="Publishing" if config.spec.publish else "Succeeded", message=None, checkpoint_problem=None)


def _choose_model(
    task: Task, loop: Loop, evaluator: Evaluator, output: OutputDirectory, step: int
) -> tuple[int, dict[str, float]]:
    """Load the weights of the best model if the spec asks for it. Return the step and the metrics of the chosen model."""
    best, last = evaluator.best_evaluation, evaluator.last
    if best is not None and best.step != step:
        log.info("the model of step %d is the best one: it becomes the finished model", best.step)
        load_weights(task.model, output.best_model(best.step))
        return best.step, loop.evaluate_model()
    if last is not None and last.step == step and evaluator.details:
        return step, dict(last.metrics)
    return step, loop.evaluate_model()


def baseline_answers(task: Task, spec: FineTuneJobSpec) -> list[SampleAnswer]:
    """Return a masked language model's answers before the training, for comparison. Other tasks give none."""
    if spec.task != "masked-lm" or not spec.samples:
        return []
    task.model.eval()
    return task.answer(spec.samples)


def _answers(task: Task, spec: FineTuneJobSpec, baseline: list[SampleAnswer]) -> list[SampleAnswer] | None:
    if not spec.samples:
        return None
    answers = task.answer(spec.samples)
    for index, was in enumerate(baseline):
        answers[index] = answers[index].model_copy(update={"guesses_before": was.guesses})
    return answers
