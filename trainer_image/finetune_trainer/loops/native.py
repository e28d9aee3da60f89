"""The loop in plain PyTorch, on Accelerate: to be read from top to bottom. It takes the same steps as the one on the Trainer."""

import contextlib
import pathlib
import random
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import get_parameter_names

from finetune_trainer import checkpoint as checkpoints
from finetune_trainer.batches import BatchPlan
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.stream import StreamRows
from finetune_trainer.distributed import Control
from finetune_trainer.loops.evaluation import Evaluator
from finetune_trainer.loops.watch import Watch
from finetune_trainer.output import Output
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
        output: Output,
        ranks: Control,
        watch: Watch,
        evaluator: Evaluator,
        keep: int,
    ) -> None:
        self._task, self._plan, self._args, self._output = task, plan, args, output
        self._ranks, self._watch, self._evaluator, self._keep = ranks, watch, evaluator, keep

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
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )  # fmt: skip
        self._sampler = rows.batches(plan, ranks.world.rank)
        self._loader = DataLoader(
            rows,
            batch_sampler=self._sampler,
            collate_fn=task.collate,
            pin_memory=torch.cuda.is_available(),
            num_workers=args.dataloader_num_workers,
            generator=torch.Generator(),  # its own, so that the numbers for dropout do not depend on when it is asked
        )

    def run(self, resume_from: pathlib.Path | None) -> int:
        """Train, from a checkpoint if there is one; the optimizer steps done in the end."""
        step = self._load(resume_from) if resume_from else 0
        total = self._args.max_steps
        if self._evaluator.is_due(step, total) and step == 0:
            self._evaluator.run(0, self._accelerator.autocast())
        self._watch.begin(step, total)
        losses = torch.zeros((), device=self._accelerator.device)  # summed since the last log line; read only then
        logged = step
        self._model.train()
        for micro_batches in self._steps_from(total if self._evaluator.stops_early() else step):
            count = self._ranks.sum(sum(self._task.count(batch) for batch in micro_batches))
            for index, batch in enumerate(micro_batches):
                is_last = index == len(micro_batches) - 1
                # Gradients are exchanged once a step, with its last micro-batch.
                with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._model):
                    losses += self._forward_and_backward(batch, count)
            longest = self._args.max_grad_norm or float("inf")  # 0 does not clip
            norm = self._accelerator.clip_grad_norm_(self._model.parameters(), longest)
            rate = self._scheduler.get_last_lr()[0]
            self._optimizer.step()
            if not self._accelerator.optimizer_step_was_skipped:  # as after an overflow in fp16
                self._scheduler.step()
            self._optimizer.zero_grad()
            step += 1

            epoch = self._sampler.epoch(step)
            stop = self._watch.step_done(step, total, epoch)
            if step == 1 or step % self._args.logging_steps == 0:
                mean = self._accelerator.reduce(losses, "mean").item() / (step - logged)
                self._watch.logged(step, epoch, mean, float(norm), rate)
                losses.zero_()
                logged = step
            if self._evaluator.is_due(step, total):
                self._evaluator.run(step, self._accelerator.autocast())
                stop = stop or self._evaluator.stops_early()
            if self._watch.interrupted or step % self._args.save_steps == 0 or step == total:
                self._save(step)
            if stop:
                break
        return step

    def evaluate_again(self) -> dict[str, float]:
        """Figures of the model as it is now."""
        return self._evaluator.measure(self._accelerator.autocast())

    def _forward_and_backward(self, batch: Batch, count: int) -> torch.Tensor:
        """One micro-batch. count: terms of the loss over the whole global batch. Returns its share of the step's loss."""
        self._watch.tokens(count_tokens(batch))
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
            while step < self._args.max_steps and (micro_batches := list(islice(batches, self._plan.accumulation))):
                yield micro_batches
                step += 1

    def _save(self, step: int) -> None:
        """A checkpoint: weights and optimizer, which all processes have alike, and the random numbers of each."""
        started = time.monotonic()
        staging = pathlib.Path(self._args.output_dir) / f"checkpoint-{step}"
        staging.mkdir(parents=True, exist_ok=True)
        if self._ranks.world.rank == 0:
            state = {
                "step": step,
                "model": self._accelerator.unwrap_model(self._model).state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict(),
                "scaler": self._accelerator.scaler.state_dict() if self._accelerator.scaler else None,
            }
            torch.save(state, staging / "state.pt")
        torch.save(_random_state(), staging / f"random-{self._ranks.world.rank}.pt")
        self._ranks.barrier()
        if self._ranks.world.rank == 0:
            checkpoints.commit(staging, self._output.checkpoints, step, self._keep)
        self._ranks.barrier()  # no rank goes on, or ends, before the checkpoint is complete
        self._evaluator.prune()
        self._watch.saved(step, time.monotonic() - started)

    def _load(self, directory: pathlib.Path) -> int:
        """Go on from a checkpoint; its step."""
        state = torch.load(directory / "state.pt", map_location="cpu", weights_only=True)
        self._accelerator.unwrap_model(self._model).load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        numbers = directory / f"random-{self._ranks.world.rank}.pt"
        if numbers.exists():  # a process more than before begins with the seed
            _set_random_state(torch.load(numbers, weights_only=True))
        return int(state["step"])


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and norms are not pulled towards zero."""
    decaying = set(get_parameter_names(model, [torch.nn.LayerNorm], _NOT_DECAYING))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in trained if name in decaying], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in trained if name not in decaying], "weight_decay": 0.0},
    ]


def _random_state() -> dict[str, Any]:
    numpy_state = np.random.get_state()  # of the functions that libraries draw from
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(np.asarray(numpy_state[1], dtype=np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
