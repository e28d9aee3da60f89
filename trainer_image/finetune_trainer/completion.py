"""What follows the last step: the best model is taken, tried on the samples, saved, and the training declared a finished one."""

import json
import logging
import shutil

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import SampleAnswer
from finetune_api.wire import RunConfig
from finetune_trainer.loops import Loop
from finetune_trainer.loops.checkpointer import Keeper
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.models.adapters import merged
from finetune_trainer.models.load import save_model
from finetune_trainer.models.weights import load_weights
from finetune_trainer.monitoring.evaluation import Evaluated, evaluation_status
from finetune_trainer.monitoring.progress import Reporter
from finetune_trainer.output.directory import Output
from finetune_trainer.output.fence import Fence
from finetune_trainer.publish.card import write_model_card
from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.distributed import Control
from finetune_trainer.runtime.state import write_atomically
from finetune_trainer.tasks.base import Task

log = logging.getLogger(__name__)


def finish(
    config: RunConfig,
    task: Task,
    loop: Loop,
    evaluator: Evaluator,
    step: int,
    before: list[SampleAnswer],
    output: Output,
    reporter: Reporter,
    ranks: Control,
    fence: Fence,
    keeper: Keeper,
) -> None:
    """Take the best model, try it on the samples, save it, and write the report that makes the training a finished one."""
    reporter.update(message="evaluating on the held-out data", remaining_seconds=0.0)
    step, figures = _choose_model(task, loop, evaluator, output, step)
    reporter.update(message="saving the model", evaluation=evaluation_status(Evaluated(step, figures)))
    task.model.eval()
    reporter.update(samples=_answers(task, config.spec, before))
    keeper.close()
    heartbeat.beat(heartbeat.WRITING)
    if ranks.world.rank == 0:
        fence.check()
        write_atomically(output.evaluation, json.dumps({"step": step, "metrics": figures, **evaluator.details}, indent=1))
        written = output.directory / ".model"
        shutil.rmtree(written, ignore_errors=True)
        merge = config.spec.publish is not None and config.spec.publish.merge_adapter
        save_model(merged(task.model) if merge else task.model, task.tokenizer, written)
        write_model_card(written, config, reporter.report, evaluator.details)
        fence.check()
        output.commit_model(written)
        report = reporter.report.model_copy(update={"phase": "Succeeded", "message": None, "checkpoint_problem": None})
        write_atomically(output.report, report.model_dump_json(by_alias=True, exclude_none=True))
    ranks.barrier()
    # Only now: whoever reads this phase may rely on the model being there.
    reporter.update(phase="Publishing" if config.spec.publish else "Succeeded", message=None, checkpoint_problem=None)


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


def answers_before(task: Task, spec: FineTuneJobSpec) -> list[SampleAnswer]:
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
