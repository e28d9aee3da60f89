"""The loop in plain PyTorch with Accelerate. It takes the same steps as the loop on the Trainer."""

import contextlib
from collections.abc import Iterator
from typing import Any

import accelerate
import torch
import transformers
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import get_parameter_names

from finetune_trainer.checkpoints.content import TrainState
from finetune_trainer.data.batches import BatchPlan
from finetune_trainer.data.rows import RowDataset
from finetune_trainer.data.stream import StreamDataset
from finetune_trainer.loops.checkpointer import Checkpointer
from finetune_trainer.loops.ddp import tune_ddp
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.loader_process import end_on_lost_batch
from finetune_trainer.loops.loss_guard import LossGuard
from finetune_trainer.loops.monitor import TrainingMonitor
from finetune_trainer.loops.schedule import build_schedule, observe
from finetune_trainer.runtime import device
from finetune_trainer.runtime.distributed import Coordinator
from finetune_trainer.tasks.base import Batch, Task, count_tokens

_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


class NativeLoop:
    """Trains a task. args: the hyperparameters, including those that users add by training.arguments."""

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
        self._task, self._plan, self._args = task, plan, args
        self._coordinator, self._monitor, self._evaluator = coordinator, monitor, evaluator
        self._guard, self._checkpointer = guard, checkpointer

        # Every process has the whole model. DDP averages the gradients over the processes.
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
        ddp = accelerate.DistributedDataParallelKwargs()
        tune_ddp(ddp, task.model)
        self._accelerator = accelerate.Accelerator(mixed_precision=precision, cpu=args.use_cpu, kwargs_handlers=[ddp])
        optimizer = torch.optim.AdamW(
            _parameter_groups(task.model, args.weight_decay),
            lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True,
        )  # fmt: skip
        self._model, self._optimizer = self._accelerator.prepare(task.model, optimizer)
        self._scheduler = build_schedule(task.spec, args.lr_scheduler_kwargs, optimizer, args.max_steps)
        self._sampler = rows.batch_sampler(plan, coordinator.world.rank)
        self._loader = DataLoader(
            rows,
            batch_sampler=self._sampler,
            collate_fn=task.collate,
            pin_memory=device.has_gpu(),
            num_workers=args.dataloader_num_workers,
            worker_init_fn=end_on_lost_batch,
            generator=torch.Generator(),  # its own, so that the loader's random numbers do not change dropout
        )

    def run(self) -> int:
        """Train, from the last checkpoint if there is one. Return the number of optimizer steps done."""
        step, total = self._checkpointer.resume_step, self._args.max_steps
        train_state = TrainState(self._task.model, self._optimizer, self._scheduler, self._accelerator.scaler)
        losses = torch.zeros((), device=self._accelerator.device)  # sum since the last log line; read only for a log line
        logged = 0  # the last logged step
        if step:
            earlier, logged = self._checkpointer.load(train_state)
            losses += earlier
            self._checkpointer.load_rng_state()
        elif self._evaluator.is_due(0, total):
            self._evaluator.run(0, self._accelerator.autocast())
        self._monitor.start(step, total)
        self._model.train()
        for micro_batches in self._steps_from(total if self._evaluator.should_stop_early() else step):
            step += 1
            epoch, rate = self._sampler.epoch(step), self._scheduler.get_last_lr()[0]
            if step in self._guard.skipped_steps:
                norm = torch.zeros(())
                self._scheduler.step()
                self._monitor.batch_skipped(step, epoch)
            else:
                norm = self._train_step(micro_batches, losses)
                self._guard.observe(step, losses, norm)

            stop = self._monitor.step_done(step, total, epoch)
            trained = self._guard.trained_steps(logged, step)
            if trained and (step == 1 or step % self._args.logging_steps == 0):
                mean = self._accelerator.reduce(losses, "mean").item() / trained
                self._guard.check_logged(step, mean, float(norm))
                self._monitor.log_step(step, epoch, mean, float(norm), rate)
                losses.zero_()
                logged = step
            if self._evaluator.is_due(step, total):
                self._guard.check()
                observe(self._scheduler, self._evaluator.run(step, self._accelerator.autocast()).metrics)
                stop = stop or self._evaluator.should_stop_early()
            if self._checkpointer.is_due(step, total):
                self._checkpointer.save(step, train_state, losses, logged)
            if stop:
                break
        return step

    def _train_step(self, micro_batches: list[Batch], losses: torch.Tensor) -> torch.Tensor:
        """Take one optimizer step, and add this process's loss to ``losses``. Return the gradient norm before clipping."""
        num_loss_labels = sum(self._task.count_loss_labels(batch) for batch in micro_batches)
        tokens = sum(map(count_tokens, micro_batches))
        num_loss_labels, global_tokens = self._coordinator.all_reduce_sum(num_loss_labels, tokens)
        self._monitor.add_tokens(tokens, global_tokens)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            # The processes exchange gradients once per step, in the last micro-batch.
            with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._model):
                losses += self._forward_and_backward(batch, num_loss_labels)
        max_norm = self._args.max_grad_norm or float("inf")  # 0 means no clipping
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), max_norm)
        self._optimizer.step()
        if not self._accelerator.optimizer_step_was_skipped:  # fp16 skips it after an overflow
            self._scheduler.step()
        self._optimizer.zero_grad()
        return norm

    def evaluate_model(self) -> dict[str, float]:
        """Return the metrics of the current model."""
        return self._evaluator.compute_metrics(self._accelerator.autocast())

    def _forward_and_backward(self, batch: Batch, num_loss_labels: int) -> torch.Tensor:
        """Run one micro-batch, and return its share of the step's loss.

        num_loss_labels: labels that the loss counts in the whole global batch.
        """
        inputs = {name: tensor.to(self._accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with self._accelerator.autocast():
            loss = self._task.loss(self._model, inputs) * (self._coordinator.world.size / max(num_loss_labels, 1))
        self._accelerator.backward(loss)
        return loss.detach()

    def _steps_from(self, step: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of this process, one step at a time, from the step after ``step`` to the last."""
        while step < self._args.max_steps:
            epoch, done = divmod(step, self._plan.steps_per_epoch)
            self._sampler.set_epoch(epoch, first_step=done)
            batches = iter(self._loader)
            while step < self._args.max_steps and (
                micro_batches := self._monitor.next_micro_batches(batches, self._plan.accumulation)
            ):
                yield micro_batches
                step += 1


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer. Biases and norms have no weight decay."""
    decaying = set(get_parameter_names(model, [torch.nn.LayerNorm], _NO_DECAY))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in trained if name in decaying], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in trained if name not in decaying], "weight_decay": 0.0},
    ]
