"""Weight of each class in the loss: ``classification.classWeights`` and ``balanced``."""

import numpy as np
import torch

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.tasks.base import DataInfo


class ClassWeights:
    """Weights of the classes in a loss. Without options, all weights are 1.

    A balanced weight is labels ÷ (classes × labels of the class), counted in the training data, so that the mean over all
    training labels is 1. Given weights are used unchanged; with both options, the weights are multiplied. The loss is divided by
    the number of labels and not by the sum of their weights, so that the loss of a row does not depend on other rows.
    """

    def __init__(self, spec: FineTuneJobSpec, info: DataInfo) -> None:
        self._weights = _weights(spec, info)

    def to(self, device: torch.device) -> torch.Tensor | None:
        """Return float32 (classes,), or None if all weights are 1. The weights are copied to the device once."""
        if self._weights is not None and self._weights.device != device:
            self._weights = self._weights.to(device)
        return self._weights


def _weights(spec: FineTuneJobSpec, info: DataInfo) -> torch.Tensor | None:
    options = spec.classification
    if options is None or not (options.class_weights or options.balanced):
        return None
    field = "spec.classification." + ("classWeights" if options.class_weights else "balanced")
    if info.problem == "Regression":
        raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{field}: a regression has no classes; leave it out")
    given = options.class_weights or {}
    unknown = sorted(set(given) - set(info.classes))
    if unknown:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{field}: there is no class {unknown[0]!r}; write some of: {', '.join(info.classes)[:400]}",
        )
    weights = np.array([given.get(name, 1.0) for name in info.classes])
    if options.balanced:
        counts = np.array(info.counts, dtype=np.float64)
        occurs = counts > 0
        weights[occurs] *= counts.sum() / (occurs.sum() * counts[occurs])
    return torch.tensor(weights, dtype=torch.float32)
