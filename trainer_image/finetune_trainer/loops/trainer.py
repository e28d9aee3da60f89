"""The loop on the Hugging Face Trainer: our batches, our loss, our checkpoints, and an orderly stop."""

import json
import math
import pathlib
import time
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader

from finetune_api import metrics as declared
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Checkpoint, Training
from finetune_api.status import CheckpointStatus
from finetune_trainer import checkpoint as checkpoints
from finetune_trainer.batches import BatchPlan, TrainBatches, evaluation_batches, warmup_steps
from finetune_trainer.distributed import Control
from finetune_trainer.metrics import WorkerMetrics
from finetune_trainer.output import Output
from finetune_trainer.precision import choose_precision
from finetune_trainer.progress import Reporter, timestamp
from finetune_trainer.state import RunState
from finetune_trainer.tasks.text_classification import TextClassification

_EVALUATION_BATCH = 32
_MAX_GRADIENT_NORM = 1.0
_WEIGHT_DECAY = 0.01
COLLECTIVE_TIMEOUT_SECONDS = 600


def precision_flags(asked: Literal["auto", "bf16", "fp16", "fp32"]) -> dict[str, bool]:
    """TrainingArguments for ``spec.training.precision``; raises FineTuneError for one that the device lacks."""
    capable = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        precision = choose_precision(asked, torch.cuda.is_available(), capable)
    except ValueError as error:
        raise FineTuneError(Reason.CONFIGURATION_ERROR, str(error)) from None
    return {"bf16": precision == "bf16", "fp16": precision == "fp16"}


def training_arguments(
    training: Training, checkpoint: Checkpoint, plan: BatchPlan, total_steps: int, staging: pathlib.Path
) -> transformers.TrainingArguments:
    """The Trainer's arguments that follow from the spec; what it should not do on its own is switched off."""
    return transformers.TrainingArguments(
        output_dir=str(staging),
        per_device_train_batch_size=plan.micro,
        gradient_accumulation_steps=plan.accumulation,
        max_steps=total_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler if training.scheduler != "constant" else "constant_with_warmup",
        warmup_steps=warmup_steps(training, total_steps),
        weight_decay=_WEIGHT_DECAY,
        max_grad_norm=_MAX_GRADIENT_NORM,
        seed=training.seed,
        **precision_flags(training.precision),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=min(10, max(1, total_steps // 200)),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it syncs the GPU on every micro-batch, and hides what must be seen
        save_strategy="steps",
        save_steps=checkpoint.every_steps,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        average_tokens_across_devices=True,  # num_items_in_batch counts the global batch
        ddp_find_unused_parameters=False,
        ddp_timeout=COLLECTIVE_TIMEOUT_SECONDS,
    )


class _Loader(DataLoader[Any]):
    """DataLoader that passes the epoch on to our batch sampler, which the Trainer's own would not reach."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, TrainBatches)
        self.batch_sampler.set_epoch(epoch)


class TrainerLoop(transformers.Trainer):
    """Trains a task; rows, loss and checkpoints are ours, optimizer, schedule, precision and DDP the Trainer's."""

    def __init__(
        self,
        task: TextClassification,
        plan: BatchPlan,
        args: transformers.TrainingArguments,
        output: Output,
        control_group: Control,
        metrics: WorkerMetrics,
        keep: int,
    ) -> None:
        super().__init__(
            model=task.model, args=args, data_collator=task.collate, train_dataset=task.train_rows, compute_loss_func=task.loss
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self._task, self._plan, self._output = task, plan, output
        self._ranks, self._metrics, self._keep = control_group, metrics, keep
        self.last_checkpoint: CheckpointStatus | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Our batches, already this rank's share: nothing is left for accelerate to split."""
        sampler = TrainBatches(self._plan, self.args.seed, self._ranks.world.rank)
        return _Loader(
            self._task.train_rows,
            batch_sampler=sampler,
            collate_fn=self._task.collate,
            pin_memory=torch.cuda.is_available(),
            num_workers=2 if torch.cuda.is_available() else 0,
            persistent_workers=torch.cuda.is_available(),
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Count tokens while the batch is still in host memory, then step."""
        if "attention_mask" in inputs:
            self._metrics.tokens(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluate_rows(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Loss and the task's figures over all held-out rows, each counted once, the same on every rank; and the details."""
        world = self._ranks.world
        keys = evaluation_batches(len(self._task.eval_rows), _EVALUATION_BATCH, world.rank, world.size)
        loader = DataLoader(self._task.eval_rows, batch_sampler=keys, collate_fn=self._task.collate)
        self.model.eval()
        mine: list[tuple[np.ndarray, np.ndarray]] = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in loader:
                inputs = self._prepare_inputs(batch)
                labels = inputs.pop("labels")
                logits = self.model(**inputs).logits.float()
                mine.append((logits.cpu().numpy(), labels.cpu().numpy()))
        everyone = [pair for pairs in self._ranks.gather(mine) for pair in pairs]
        logits = np.concatenate([pair[0] for pair in everyone])
        labels = np.concatenate([pair[1] for pair in everyone])
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
        figures, details = self._task.metrics(logits, labels)
        return {"loss": float(loss), **figures}, details

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
        self.last_checkpoint = CheckpointStatus(step=step, time=timestamp(time.time()))
        self._metrics.set(declared.CHECKPOINT_LAST_SUCCESS, time.time())
        self._metrics.set(declared.CHECKPOINT_DURATION, time.monotonic() - started)


class Observer(transformers.TrainerCallback):
    """Reports every step, writes the history, and stops all ranks at the same step when somebody asks for it."""

    def __init__(
        self,
        loop: TrainerLoop,
        state: RunState,
        reporter: Reporter,
        metrics: WorkerMetrics,
        control_group: Control,
        output: Output,
    ) -> None:
        self._loop, self._run_state, self._reporter = loop, state, reporter
        self._metrics, self._ranks, self._output = metrics, control_group, output
        self._step_started = time.monotonic()
        self.interrupted = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say how much there is to do."""
        self._reporter.update(message="the first step is under way", step=state.global_step, total_steps=state.max_steps)
        self._metrics.set(declared.TRAINING_MAX_STEPS, state.max_steps)
        self._step_started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step; ask all ranks whether to stop."""
        now = time.monotonic()
        self._metrics.step(now - self._step_started, time.time())
        self._step_started = now
        self._metrics.set(declared.TRAINING_STEP, state.global_step)
        self._reporter.step(state.global_step, state.epoch, self._loop._plan.global_batch)
        if self._ranks.any_rank(self._run_state.stop_requested()) and state.global_step < state.max_steps:
            self.interrupted = True
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the checkpoint; the time for it is not the next step's."""
        self._reporter.update(checkpoint=self._loop.last_checkpoint)
        self._step_started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Write the figures of a step down; a loss that is no number ends the job on every rank alike."""
        if not logs or "loss" not in logs:
            return
        loss = logs["loss"]
        if not math.isfinite(loss):
            raise FineTuneError(
                Reason.NON_FINITE_LOSS,
                f"the loss is {loss} at step {state.global_step}; lower spec.training.learningRate "
                f"({args.learning_rate:g}) or set spec.training.precision to fp32",
            )
        entry = {
            "step": state.global_step,
            "epoch": state.epoch,
            "loss": loss,
            "gradientNorm": logs.get("grad_norm"),
            "learningRate": logs.get("learning_rate"),
        }
        if self._ranks.world.rank == 0:
            append_history(self._output, entry)
        self._metrics.set(declared.TRAINING_LOSS, loss)
        self._metrics.set(declared.TRAINING_LEARNING_RATE, logs.get("learning_rate", 0.0))
        self._metrics.set(declared.TRAINING_GRADIENT_NORM, logs.get("grad_norm") or 0.0)
        self._reporter.update(loss=loss, learning_rate=logs.get("learning_rate"))


def append_history(output: Output, entry: dict[str, Any]) -> None:
    """Add one line to the run's history; a value that is no number is left out, as JSON has no NaN."""
    finite = {key: value for key, value in entry.items() if not isinstance(value, float) or math.isfinite(value)}
    with output.history.open("a") as stream:
        stream.write(json.dumps(finite) + "\n")
