"""The loop on the Hugging Face Trainer, with our batches, loss, evaluations and checkpoints, and with an orderly stop."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from finetune_trainer.checkpoints.content import TrainState
from finetune_trainer.data.batches import BatchPlan, StreamBatchSampler, TrainBatchSampler
from finetune_trainer.data.rows import RowDataset
from finetune_trainer.data.stream import StreamDataset
from finetune_trainer.loops.arguments import explain_argument_errors
from finetune_trainer.loops.checkpointer import Checkpointer
from finetune_trainer.loops.ddp import tune_ddp
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.loader_process import end_on_lost_batch
from finetune_trainer.loops.loss_guard import LossGuard
from finetune_trainer.loops.monitor import TrainingMonitor
from finetune_trainer.loops.schedule import build_schedule, observe
from finetune_trainer.runtime.device import has_gpu
from finetune_trainer.runtime.distributed import Coordinator
from finetune_trainer.tasks.base import Batch, Task, count_tokens


class _Loader(DataLoader[Any]):
    """A DataLoader that passes the epoch on to our batch sampler. The Trainer alone would not do that."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, TrainBatchSampler | StreamBatchSampler)
        self.batch_sampler.set_epoch(epoch)


class TrainerLoop(transformers.Trainer):
    """Trains a task. Rows, loss and checkpoints are ours. Optimizer, schedule, precision and DDP are the Trainer's.

    The Trainer must not load a checkpoint itself, because it would read files of its own format. Each method in which it would do
    so is overridden below.
    """

    def __init__(
        self,
        task: Task,
        rows: RowDataset | StreamDataset,
        plan: BatchPlan,
        args: transformers.TrainingArguments,
        coordinator: Coordinator,
        monitor: TrainingMonitor,
        evaluator: Evaluator,
        guard: LossGuard,
        checkpointer: Checkpointer,
    ) -> None:
        super().__init__(model=task.model, args=args, data_collator=task.collate, train_dataset=rows)
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        tune_ddp(self.accelerator.ddp_handler, task.model, args.ddp_broadcast_buffers)
        self._batch_sampler = rows.batch_sampler(plan, coordinator.world.rank)
        self.add_callback(_LoopCallback(self, monitor, evaluator, guard, checkpointer))
        # These settings tell the Trainer not to divide the loss. compute_loss() below divides it, over the global batch.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True
        self._task, self._rows, self._coordinator = task, rows, coordinator
        self._monitor, self._evaluator, self._guard, self._checkpointer = monitor, evaluator, guard, checkpointer

    def run(self) -> int:
        """Train, from the last checkpoint if there is one. Return the number of optimizer steps done."""
        done = self._checkpointer.resume_step
        if done == 0 and self._evaluator.is_due(0, self.args.max_steps):
            self._evaluator.run(0, self.accelerator.autocast())
        if done and (done >= self.args.max_steps or self._evaluator.should_stop_early()):
            # The training is complete, but the Trainer would take one more step.
            self._checkpointer.load_model(self.model)
            return done
        with explain_argument_errors(self._task.spec.training):
            self.create_optimizer_and_scheduler(self.args.max_steps)
        self.train()
        return int(self.state.global_step)

    def epoch(self, step: int) -> float:
        """Return the number of passes over the data after ``step`` steps."""
        return self._batch_sampler.epoch(step)

    def evaluate_model(self) -> dict[str, float]:
        """Return the metrics of the current model."""
        return self._evaluator.compute_metrics(self.accelerator.autocast())

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create our schedule, which knows spec.training.scheduler."""
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None
            self.lr_scheduler = build_schedule(self._task.spec, self.args.lr_scheduler_kwargs, chosen, num_training_steps)
            self._created_lr_scheduler = True  # train() then creates it again, for the optimizer that accelerate has wrapped
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of our batches. They are already this rank's share, so accelerate has nothing to split."""
        workers = self.args.dataloader_num_workers
        return _Loader(
            self._rows,
            batch_sampler=self._batch_sampler,
            collate_fn=self._task.collate,
            pin_memory=has_gpu(),
            num_workers=workers,
            worker_init_fn=end_on_lost_batch,
            persistent_workers=workers > 0,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], int]:
        """Return the micro-batches of a step, and the number of counted labels in the global batch. Counts on the CPU."""
        batches = self._monitor.next_micro_batches(epoch_iterator, num_batches)
        if self._is_skipped_step():
            return batches, 0
        tokens = sum(map(count_tokens, batches))
        num_loss_labels, global_tokens = self._coordinator.all_reduce_sum(
            sum(self._task.count_loss_labels(batch) for batch in batches), tokens
        )
        self._monitor.add_tokens(tokens, global_tokens)
        return batches, num_loss_labels

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return this forward pass's share of the mean over the global batch. The factor undoes DDP's mean over processes."""
        assert num_items_in_batch is not None
        return self._task.loss(model, inputs) * (self._coordinator.world.size / max(num_items_in_batch, 1))

    # --- skipped batches: neither weights nor optimizer change -----------------------------------------------------------

    def _is_skipped_step(self) -> bool:
        """Return whether the batch of the current step is skipped, because its loss was NaN or infinite before."""
        return self.state.global_step + 1 in self._guard.skipped_steps

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward of a micro-batch."""
        if self._is_skipped_step():
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        return torch.zeros(()) if self._is_skipped_step() else super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Check loss and gradient. The Trainer calls this after the last backward pass of a step, before the optimizer."""
        if self._is_skipped_step():
            self.accelerator.gradient_state._set_sync_gradients(False)  # so that the optimizer and fp16's scaler do nothing
            return torch.zeros(())
        norm = super()._get_grad_norm(model, grad_norm)
        self._guard.observe(self.state.global_step + 1, self._tr_loss, norm)
        return norm

    # ---------------------------------------------------------------------------------------------------------------------

    def _prepare_input(self, data: Any) -> Any:
        """Copy tensors to the device without waiting for the copy, because the batches are in pinned memory."""
        return data.to(self.args.device, non_blocking=True) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Run our evaluation instead of the Trainer's."""
        self._guard.check()
        done = self._evaluator.run(self.state.global_step, self.accelerator.autocast())
        metrics = {f"eval_{name}": value for name, value in done.metrics.items()}
        observe(self.lr_scheduler, done.metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self._evaluator.should_stop_early():
            self.control.should_training_stop = True
        return metrics

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save our checkpoint instead of the Trainer's."""
        self._checkpointer.save(self.state.global_step, self._train_state(), self._tr_loss, self._globalstep_last_logged)

    def _train_state(self) -> TrainState:
        return TrainState(self.model, self.optimizer, self.lr_scheduler, self.accelerator.scaler)

    def _inner_training_loop(self, *arguments: Any, **options: Any) -> Any:
        """Tell the Trainer that it resumes, so that it starts in the middle of an epoch and restores random numbers."""
        if self._checkpointer.resume_step:
            options["resume_from_checkpoint"] = "ours"
        return super()._inner_training_loop(*arguments, **options)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, steps_per_epoch, epochs, None, trial)
        done = self._checkpointer.resume_step
        self.state.global_step, self.state.epoch = done, done / steps_per_epoch
        return done // steps_per_epoch, done % steps_per_epoch * self.args.gradient_accumulation_steps

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        return super()._prepare_for_training(max_steps, train_dataloader, None)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self._checkpointer.load_rng_state()

    def restore_checkpoint(self) -> int:
        """Restore the checkpoint, if there is one, when model and optimizer are created. Return the last logged step."""
        if self._checkpointer.resume_step:
            losses, self._globalstep_last_logged = self._checkpointer.load(self._train_state())
            self._tr_loss += losses
        return self._globalstep_last_logged


class _LoopCallback(transformers.TrainerCallback):
    """Passes the Trainer's events to the monitor. Requests evaluations, saves and stops; all ranks stop at the same step."""

    def __init__(
        self, loop: TrainerLoop, monitor: TrainingMonitor, evaluator: Evaluator, guard: LossGuard, checkpointer: Checkpointer
    ) -> None:
        self._loop, self._monitor, self._evaluator = loop, monitor, evaluator
        self._guard, self._checkpointer = guard, checkpointer
        self._logged = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._logged = self._loop.restore_checkpoint()
        self._monitor.start(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, epoch = state.global_step, self._loop.epoch(state.global_step)
        if step in self._guard.skipped_steps:
            self._monitor.batch_skipped(step, epoch)
        if self._monitor.step_done(step, state.max_steps, epoch):
            control.should_training_stop = True
        if self._evaluator.is_due(step, state.max_steps):
            control.should_evaluate = True
        if self._checkpointer.is_due(step, state.max_steps):
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step, steps = state.global_step, state.global_step - self._logged
        trained, self._logged = self._guard.trained_steps(self._logged, step), step
        if trained:
            loss = logs["loss"] if trained == steps else logs["loss"] * steps / trained
            self._guard.check_logged(step, loss, logs.get("grad_norm"))
            self._monitor.log_step(step, self._loop.epoch(step), loss, logs.get("grad_norm"), logs.get("learning_rate", 0.0))
