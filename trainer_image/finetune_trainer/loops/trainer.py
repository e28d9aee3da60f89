"""The loop on the Hugging Face Trainer: our batches, our loss, our evaluations and checkpoints, and an orderly stop."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from finetune_trainer.checkpoints.content import Parts
from finetune_trainer.data.batches import BatchPlan, StreamBatches, TrainBatches
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.stream import StreamRows
from finetune_trainer.loops.arguments import refused_arguments
from finetune_trainer.loops.checkpointer import Keeper
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.finite import LossGuard
from finetune_trainer.loops.watch import Watch
from finetune_trainer.runtime.device import has_gpu
from finetune_trainer.runtime.distributed import Control
from finetune_trainer.tasks.base import Batch, Task, count_tokens


class _Loader(DataLoader[Any]):
    """DataLoader that passes the epoch on to our batch sampler, which the Trainer's own would not reach."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, TrainBatches | StreamBatches)
        self.batch_sampler.set_epoch(epoch)


class TrainerLoop(transformers.Trainer):
    """Trains a task; rows, loss and checkpoints are ours, optimizer, schedule, precision and DDP the Trainer's.

    The Trainer is never told of a checkpoint by its own means, which would read its own files: each place where it would load one
    is overridden below.
    """

    def __init__(
        self,
        task: Task,
        rows: Rows | StreamRows,
        plan: BatchPlan,
        args: transformers.TrainingArguments,
        ranks: Control,
        watch: Watch,
        evaluator: Evaluator,
        guard: LossGuard,
        keeper: Keeper,
    ) -> None:
        super().__init__(model=task.model, args=args, data_collator=task.collate, train_dataset=rows)
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self._batches = rows.batches(plan, ranks.world.rank)
        self.add_callback(_Turns(self, watch, evaluator, guard, keeper))
        # Both are about losses that somebody else divided: compute_loss() below does it, over the global batch.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self._task, self._rows, self._ranks = task, rows, ranks
        self._watch, self._evaluator, self._guard, self._keeper = watch, evaluator, guard, keeper

    def run(self) -> int:
        """Train, from the last checkpoint if there is one; the optimizer steps done in the end."""
        done = self._keeper.resumes_from
        if done == 0 and self._evaluator.is_due(0, self.args.max_steps):
            self._evaluator.run(0, self.accelerator.autocast())
        if done and (done >= self.args.max_steps or self._evaluator.stops_early()):
            # Everything was done but the end; the Trainer would take one more step.
            self._keeper.load_model(self.model)
            return done
        with refused_arguments(self._task.spec.training):
            self.create_optimizer_and_scheduler(self.args.max_steps)
        self.train()
        return int(self.state.global_step)

    def epoch(self, step: int) -> float:
        """Passes over the data after ``step`` steps."""
        return self._batches.epoch(step)

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
            pin_memory=has_gpu(),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], int]:
        """The micro-batches of a step, and over how many terms the global batch's loss is taken: counted on the CPU."""
        batches = self._watch.take(epoch_iterator, num_batches)
        if self._is_left_out():
            return batches, 0
        tokens = sum(map(count_tokens, batches))
        terms, of_all = self._ranks.sums(sum(self._task.count(batch) for batch in batches), tokens)
        self._watch.tokens(tokens, of_all)
        return batches, terms

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This forward pass's share of the mean over the global batch; DDP takes the mean over processes, hence the factor."""
        assert num_items_in_batch is not None
        return self._task.loss(model, inputs) * (self._ranks.world.size / max(num_items_in_batch, 1))

    # --- a batch that is left out: neither weights nor optimizer move ----------------------------------------------------

    def _is_left_out(self) -> bool:
        """Whether the step under way is one on which the loss was no number before."""
        return self.state.global_step + 1 in self._guard.skipped

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a micro-batch."""
        if self._is_left_out():
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        return torch.zeros(()) if self._is_left_out() else super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called after the last backward pass of a step, and before the optimizer."""
        if self._is_left_out():
            self.accelerator.gradient_state._set_sync_gradients(False)  # so that the optimizer, and fp16's scaler, do nothing
            return torch.zeros(())
        norm = super()._get_grad_norm(model, grad_norm)
        self._guard.observe(self.state.global_step + 1, self._tr_loss, norm)
        return norm

    # ---------------------------------------------------------------------------------------------------------------------

    def _prepare_input(self, data: Any) -> Any:
        """To the device, without waiting for it: the batches are in pinned memory."""
        return data.to(self.args.device, non_blocking=True) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Our evaluation, where the Trainer would do its own."""
        self._guard.check()
        done = self._evaluator.run(self.state.global_step, self.accelerator.autocast())
        figures = {f"eval_{name}": value for name, value in done.figures.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        if self._evaluator.stops_early():
            self.control.should_training_stop = True
        return figures

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint of ours, where the Trainer would write its own."""
        self._keeper.save(self.state.global_step, self._parts(), self._tr_loss, self._globalstep_last_logged)

    def _parts(self) -> Parts:
        return Parts(self.model, self.optimizer, self.lr_scheduler, self.accelerator.scaler)

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        """Let the Trainer know that it goes on, so that it begins in the middle of an epoch and asks for random numbers."""
        if self._keeper.resumes_from:
            options["resume_from_checkpoint"] = "ours"
        return super()._inner_training_loop(*arguments, **options)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, steps_per_epoch, epochs, None, trial)
        done = self._keeper.resumes_from
        self.state.global_step, self.state.epoch = done, done / steps_per_epoch
        return done // steps_per_epoch, done % steps_per_epoch * self.args.gradient_accumulation_steps

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        return super()._prepare_for_training(max_steps, train_dataloader, None)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self._keeper.load_random()

    def go_on(self) -> int:
        """Everything is made: put the checkpoint's state in its place, if there is one. Returns the last step that was logged."""
        if self._keeper.resumes_from:
            losses, self._globalstep_last_logged = self._keeper.load(self._parts())
            self._tr_loss += losses
        return self._globalstep_last_logged


class _Turns(transformers.TrainerCallback):
    """The Trainer's turns, passed on; all ranks stop at the same step when somebody asks for it."""

    def __init__(self, loop: TrainerLoop, watch: Watch, evaluator: Evaluator, guard: LossGuard, keeper: Keeper) -> None:
        self._loop, self._watch, self._evaluator, self._guard, self._keeper = loop, watch, evaluator, guard, keeper
        self._logged = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._logged = self._loop.go_on()
        self._watch.begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, epoch = state.global_step, self._loop.epoch(state.global_step)
        if step in self._guard.skipped:
            self._watch.skipped(step, epoch)
        if self._watch.step_done(step, state.max_steps, epoch):
            control.should_training_stop = True
        if self._evaluator.is_due(step, state.max_steps):
            control.should_evaluate = True
        if self._keeper.is_due(step, state.max_steps):
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step, steps = state.global_step, state.global_step - self._logged
        trained, self._logged = self._guard.trained_steps(self._logged, step), step
        if trained:
            loss = logs["loss"] if trained == steps else logs["loss"] * steps / trained
            self._guard.check_logged(step, loss, logs.get("grad_norm"))
            self._watch.logged(step, self._loop.epoch(step), loss, logs.get("grad_norm"), logs.get("learning_rate", 0.0))
