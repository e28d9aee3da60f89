"""The loop in plain PyTorch, on Accelerate: to be read from top to bottom. It takes the same steps as the one on the Trainer."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import accelerate
import torch
import transformers
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import get_parameter_names

from finetune_trainer.checkpoints.content import Parts
from finetune_trainer.data.batches import BatchPlan
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.stream import StreamRows
from finetune_trainer.loops.checkpointer import Keeper
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.finite import LossGuard
from finetune_trainer.loops.watch import Watch
from finetune_trainer.runtime import device
from finetune_trainer.runtime.distributed import Control
from finetune_trainer.tasks.base import Batch, Task, count_tokens

_NOT_DECAYING = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


class NativeLoop:
    """Trains a task. args: the hyperparameters, those that users add by training.arguments among them."""

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
        self._task, self._plan, self._args = task, plan, args
        self._ranks, self._watch, self._evaluator, self._guard, self._keeper = ranks, watch, evaluator, guard, keeper

        # Every process has the whole model; DDP takes the mean of the gradients over processes.
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
        self._accelerator = accelerate.Accelerator(mixed_precision=precision, cpu=args.use_cpu)
        optimizer = torch.optim.AdamW(
            _parameter_groups(task.model, args.weight_decay),
            lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True,
        )  # fmt: skip
        self._model, self._optimizer = self._accelerator.prepare(task.model, optimizer)
        self._scheduler = transformers.get_scheduler(
            args.lr_scheduler_type, optimizer, args.get_warmup_steps(args.max_steps), args.max_steps,
            scheduler_specific_kwargs=cast(dict[str, Any] | None, args.lr_scheduler_kwargs),
        )  # fmt: skip
        self._sampler = rows.batches(plan, ranks.world.rank)
        self._loader = DataLoader(
            rows,
            batch_sampler=self._sampler,
            collate_fn=task.collate,
            pin_memory=device.has_gpu(),
            num_workers=args.dataloader_num_workers,
            generator=torch.Generator(),  # its own, so that the numbers for dropout do not depend on when it is asked
        )

    def run(self) -> int:
        """Train, from the last checkpoint if there is one; the optimizer steps done in the end."""
        step, total = self._keeper.resumes_from, self._args.max_steps
        parts = Parts(self._task.model, self._optimizer, self._scheduler, self._accelerator.scaler)
        losses = torch.zeros((), device=self._accelerator.device)  # summed since the last log line; read only then
        logged = 0  # the last step that was
        if step:
            earlier, logged = self._keeper.load(parts)
            losses += earlier
            self._keeper.load_random()
        elif self._evaluator.is_due(0, total):
            self._evaluator.run(0, self._accelerator.autocast())
        self._watch.begin(step, total)
        self._model.train()
        for micro_batches in self._steps_from(total if self._evaluator.stops_early() else step):
            step += 1
            epoch, rate = self._sampler.epoch(step), self._scheduler.get_last_lr()[0]
            if step in self._guard.skipped:
                norm = torch.zeros(())
                self._scheduler.step()
                self._watch.skipped(step, epoch)
            else:
                norm = self._train_step(micro_batches, losses)
                self._guard.observe(step, losses, norm)

            stop = self._watch.step_done(step, total, epoch)
            trained = self._guard.trained_steps(logged, step)
            if trained and (step == 1 or step % self._args.logging_steps == 0):
                mean = self._accelerator.reduce(losses, "mean").item() / trained
                self._guard.check_logged(step, mean, float(norm))
                self._watch.logged(step, epoch, mean, float(norm), rate)
                losses.zero_()
                logged = step
            if self._evaluator.is_due(step, total):
                self._guard.check()
                self._evaluator.run(step, self._accelerator.autocast())
                stop = stop or self._evaluator.stops_early()
            if self._keeper.is_due(step, total):
                self._keeper.save(step, parts, losses, logged)
            if stop:
                break
        return step

    def _train_step(self, micro_batches: list[Batch], losses: torch.Tensor) -> torch.Tensor:
        """One optimizer step; the norm of the gradient before it was clipped. losses: this process's share is added to it."""
        terms = sum(self._task.count(batch) for batch in micro_batches)
        tokens = sum(map(count_tokens, micro_batches))
        terms, of_all = self._ranks.sums(terms, tokens)
        self._watch.tokens(tokens, of_all)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            # Gradients are exchanged once a step, with its last micro-batch.
            with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._model):
                losses += self._forward_and_backward(batch, terms)
        longest = self._args.max_grad_norm or float("inf")  # 0 does not clip
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), longest)
        self._optimizer.step()
        if not self._accelerator.optimizer_step_was_skipped:  # as after an overflow in fp16
            self._scheduler.step()
        self._optimizer.zero_grad()
        return norm

    def evaluate_again(self) -> dict[str, float]:
        """Figures of the model as it is now."""
        return self._evaluator.measure(self._accelerator.autocast())

    def _forward_and_backward(self, batch: Batch, count: int) -> torch.Tensor:
        """One micro-batch. count: terms of the loss over the whole global batch. Returns its share of the step's loss."""
        inputs = {name: tensor.to(self._accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with self._accelerator.autocast():
            loss = self._task.loss(self._model, inputs) * (self._ranks.world.size / max(count, 1))
        self._accelerator.backward(loss)
        return loss.detach()

    def _steps_from(self, step: int) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a step at a time, from the step after ``step`` to the last."""
        while step < self._args.max_steps:
            epoch, done = divmod(step, self._plan.steps_per_epoch)
            self._sampler.set_epoch(epoch, first_step=done)
            batches = iter(self._loader)
            while step < self._args.max_steps and (micro_batches := self._watch.take(batches, self._plan.accumulation)):
                yield micro_batches
                step += 1


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and norms are not pulled towards zero."""
    decaying = set(get_parameter_names(model, [torch.nn.LayerNorm], _NOT_DECAYING))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in trained if name in decaying], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in trained if name not in decaying], "weight_decay": 0.0},
    ]
