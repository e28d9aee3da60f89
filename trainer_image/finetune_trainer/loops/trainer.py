"""The loop on the Hugging Face Trainer: our batches, our loss, our evaluations and checkpoints, and an orderly stop."""

import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from finetune_trainer import checkpoint as checkpoints
from finetune_trainer.batches import BatchPlan, StreamBatches, TrainBatches
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.stream import StreamRows
from finetune_trainer.distributed import Control
from finetune_trainer.loops.arguments import refused_arguments
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.watch import Watch
from finetune_trainer.output import Output
from finetune_trainer.tasks.base import Batch, Task, count_tokens


class _Loader(DataLoader[Any]):
    """DataLoader that passes the epoch on to our batch sampler, which the Trainer's own would not reach."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, TrainBatches | StreamBatches)
        self.batch_sampler.set_epoch(epoch)


class TrainerLoop(transformers.Trainer):
    """Trains a task; rows, loss and checkpoints are ours, optimizer, schedule, precision and DDP the Trainer's."""

    def __init__(
        self,
        task: Task,
        rows: Rows | StreamRows,
        plan: BatchPlan,
        args: transformers.TrainingArguments,
        output: Output,
        ranks: Control,
        watch: Watch,
        evaluator: Evaluator,
        keep: int,
    ) -> None:
        super().__init__(model=task.model, args=args, data_collator=task.collate, train_dataset=rows)
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self._batches = rows.batches(plan, ranks.world.rank)
        self.add_callback(_Turns(watch, evaluator, self._batches.epoch))
        # Both are about losses that somebody else divided: compute_loss() below does it, over the global batch.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self._task, self._rows, self._output = task, rows, output
        self._ranks, self._watch, self._evaluator, self._keep = ranks, watch, evaluator, keep

    def run(self, resume_from: pathlib.Path | None) -> int:
        """Train, from a checkpoint if there is one; the optimizer steps done in the end."""
        done = checkpoints.step_of(resume_from) if resume_from else 0
        if self._evaluator.is_due(done, self.args.max_steps) and done == 0:
            self._evaluator.run(0, self.accelerator.autocast())
        if resume_from and (done >= self.args.max_steps or self._evaluator.stops_early()):
            # Everything was done but the end; the Trainer would take one more step.
            self._load_from_checkpoint(str(resume_from), self.model)
            return done
        with refused_arguments(self._task.spec.training):
            self.create_optimizer_and_scheduler(self.args.max_steps)
        self.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        return int(self.state.global_step)

    def evaluate_again(self) -> dict[str, float]:
        """Figures of the model as it is now."""
        return self._evaluator.measure(self.accelerator.autocast())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Our batches, already this rank's share: nothing is left for accelerate to split."""
        workers = self.args.dataloader_num_workers
        return _Loader(
            self._rows,
            batch_sampler=self._batches,
            collate_fn=self._task.collate,
            pin_memory=torch.cuda.is_available(),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], int]:
        """The micro-batches of a step, and over how many terms the global batch's loss is taken: counted on the CPU."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        for batch in batches:
            self._watch.tokens(count_tokens(batch))
        return batches, self._ranks.sum(sum(self._task.count(batch) for batch in batches))

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> torch.Tensor:
        """This forward pass's share of the mean over the global batch; DDP takes the mean over processes, hence the factor."""
        assert num_items_in_batch is not None
        return self._task.loss(model, inputs) * (self._ranks.world.size / max(num_items_in_batch, 1))

    def _prepare_input(self, data: Any) -> Any:
        """To the device, without waiting for it: the batches are in pinned memory."""
        return data.to(self.args.device, non_blocking=True) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Our evaluation, where the Trainer would do its own."""
        done = self._evaluator.run(self.state.global_step, self.accelerator.autocast())
        figures = {f"eval_{name}": value for name, value in done.figures.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        if self._evaluator.stops_early():
            self.control.should_training_stop = True
        return figures

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let the Trainer write into the staging folder, wait for every rank, and give it its final name."""
        started = time.monotonic()
        step = self.state.global_step
        super()._save_checkpoint(model, trial)
        self._ranks.barrier()
        if self._ranks.world.rank == 0:
            written = pathlib.Path(self.args.output_dir) / f"checkpoint-{step}"
            checkpoints.commit(written, self._output.checkpoints, step, self._keep)
        self._ranks.barrier()  # no rank goes on, or ends, before the checkpoint is complete
        self._evaluator.prune()
        self._watch.saved(step, time.monotonic() - started)


class _Turns(transformers.TrainerCallback):
    """The Trainer's turns, passed on; all ranks stop at the same step when somebody asks for it."""

    def __init__(self, watch: Watch, evaluator: Evaluator, epoch: Callable[[int], float]) -> None:
        self._watch, self._evaluator, self._epoch = watch, evaluator, epoch

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._watch.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._watch.step_done(state.global_step, state.max_steps, self._epoch(state.global_step)):
            control.should_save = True
            control.should_training_stop = True
        if self._evaluator.is_due(state.global_step, state.max_steps):
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            rate = logs.get("learning_rate", 0.0)
            epoch = self._epoch(state.global_step)
            self._watch.logged(state.global_step, epoch, logs["loss"], logs.get("grad_norm"), rate)
