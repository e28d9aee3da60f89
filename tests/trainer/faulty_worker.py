"""A worker with injected faults, for the tests of the launcher. The variable FAULT is a JSON object with these keys:

seconds: delay of each forward pass after the first ``after`` ones. rows: a forward pass with more rows runs out of memory.
step: the forward pass that raises ``error``, or sends ``signal`` to its own process. rank: the only rank on which ``rows`` and
``step`` apply; 0 by default. stage: "tokenising", "checking" (of the weights before a save, by rank 0, for which others wait) or
"saving", which takes ``stage_seconds`` longer. A save stops its delay as soon as it is waited for.
"""

import json
import os
import sys
import time
from typing import Any

import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_trainer import preparation, train
from finetune_trainer.checkpoints import content
from finetune_trainer.checkpoints.writer import Writer
from finetune_trainer.tasks.text_classification import TextClassification

FAULT: dict[str, Any] = json.loads(os.environ.get("FAULT", "{}"))
_loss = TextClassification.loss
_passes = 0


def is_here() -> bool:
    """Whether the fault applies to this process."""
    return bool(FAULT.get("rank", 0) == int(os.environ.get("RANK", "0")))


def loss(self: TextClassification, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    global _passes
    _passes += 1
    if _passes > FAULT.get("after", 0):
        time.sleep(FAULT.get("seconds", 0.0))
    if "rows" in FAULT and len(batch["labels"]) > FAULT["rows"] and is_here():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if _passes == FAULT.get("step") and is_here():
        if "signal" in FAULT:
            os.kill(os.getpid(), FAULT["signal"])
        if FAULT.get("error") == "ConfigurationError":
            raise FineTuneError(Reason.CONFIGURATION_ERROR, "spec.training: this can't be")
        raise RuntimeError("this is a mistake of ours")
    return _loss(self, model, batch)


def slow(function: Any) -> Any:
    """Return a function that waits before it calls the given one."""

    def wait_and_call(*arguments: Any, **options: Any) -> Any:
        time.sleep(FAULT["stage_seconds"])
        return function(*arguments, **options)

    return wait_and_call


TextClassification.loss = loss  # type: ignore[method-assign]
train.require_gpu = lambda: None  # jobs that ask for GPUs run these tests on the CPU
if FAULT.get("stage") == "tokenising":
    preparation.prepare = slow(preparation.prepare)
if FAULT.get("stage") == "checking":
    content.is_finite = slow(content.is_finite)

if FAULT.get("stage") == "saving":
    Writer.throttle = lambda self: self._full_speed.wait(FAULT["stage_seconds"])  # type: ignore[method-assign,assignment,return-value]

main = train.main

if __name__ == "__main__":
    sys.exit(main())
