"""Findings: what the record of a training says went wrong, or is likely to, although the job succeeds.

``FINDINGS`` is the only table of them, and the constants above it are the only place of their thresholds. The trainer computes
findings with these constants, and docs/findings.md shows the table. Types are part of the API: alerts and scripts match them.
"""

import dataclasses
import enum
from typing import Final, Literal

# How many findings a status holds at most, the worst first.
MAX_FINDINGS: Final = 5

# --- thresholds: shares are 0 to 1 --------------------------------------------------------------------------------------------

# Evidence. With less of it there is no verdict, because chance would explain the figures as well.
MIN_HELD_OUT_ROWS: Final = 30
MIN_LOGGED_STEPS: Final = 30
MIN_SHARE_OF_STEPS: Final = 0.75
MIN_SECONDS_OF_STEPS: Final = 60.0

# The evaluation.
LOSS_TOLERANCE: Final = 0.01
STANDARD_ERRORS: Final = 1.0
OTHER_CLASSES_FACTOR: Final = 0.1
HELD_OUT_RISE: Final = 0.05
OVERFIT_RISE: Final = 0.1
OVERFIT_SHARE: Final = 0.05
MARGIN_KEPT: Final = 0.5
CHOSEN_LOGPS_FACTOR: Final = 1.5

# The course of the training.
COURSE_SHARE: Final = 0.25
JUMP_FACTOR: Final = 3.0
JUMP_WINDOW: Final = 10
MIN_JUMPS: Final = 3
CLIP_FACTOR: Final = 10.0
CLIPPED_SHARE: Final = 0.5
ZERO_RATE_SHARE: Final = 0.5

# The data.
SHARED_SHARE: Final = 0.1
DISAGREEING_SHARE: Final = 0.02
LEFT_OUT_SHARE: Final = 0.1
CUT_SHARE: Final = 0.5
GOOD_METRIC: Final = 0.9
RARE_CLASS_ROWS: Final = 5

# The hardware.
DATA_WAIT_SHARE: Final = 0.5
MEMORY_SHARE: Final = 0.25


class FindingType(enum.StrEnum):
    """Types of findings in CamelCase, the worst first."""

    HELD_OUT_ROWS_TRAINED_ON = "HeldOutRowsTrainedOn"
    MISSING_WEIGHTS = "MissingWeights"
    NO_BETTER_THAN_CONSTANT = "NoBetterThanConstant"
    ONE_CLASS_PREDICTED = "OneClassPredicted"
    HELD_OUT_LOSS_ROSE = "HeldOutLossRose"
    REWARD_MARGIN_FELL = "RewardMarginFell"
    CHOSEN_ANSWERS_LESS_LIKELY = "ChosenAnswersLessLikely"
    OVERFITTING = "Overfitting"
    LOSS_DOES_NOT_FALL = "LossDoesNotFall"
    LOSS_JUMPS = "LossJumps"
    LEARNING_RATE_ZERO = "LearningRateZero"
    GRADIENTS_CLIPPED = "GradientsClipped"
    NOTHING_TO_LEARN = "NothingToLearn"
    ROWS_LEFT_OUT = "RowsLeftOut"
    LABELS_DISAGREE = "LabelsDisagree"
    RARE_CLASS = "RareClass"
    ROWS_CUT = "RowsCut"
    WAITING_FOR_DATA = "WaitingForData"
    MEMORY_UNUSED = "MemoryUnused"


@dataclasses.dataclass(frozen=True)
class FindingInfo:
    """What a finding says.

    condition: when it is raised, with its thresholds, as one sentence. remedy: what to try; the messages end with it. known: from
    when on it can be raised: from the data on (also by `finetune preview`, and by `finetune plan` if all data is local), during
    the training, or late (from MIN_SHARE_OF_STEPS on). source: key of the list in docs/findings.md that it is from.
    """

    condition: str
    remedy: str
    known: Literal["data", "training", "late"]
    source: str


def _percent(share: float) -> str:
    return f"{share:.0%}"


FINDINGS: dict[FindingType, FindingInfo] = {
    FindingType.HELD_OUT_ROWS_TRAINED_ON: FindingInfo(
        f"At least {_percent(SHARED_SHARE)} of the held-out rows are also training rows.",
        "the metrics are too good: remove these rows from the training data, or name other evaluation data",
        "data",
        "deepchecks",
    ),
    FindingType.MISSING_WEIGHTS: FindingInfo(
        "The model has layers that its files lack, and the task does not need new ones. A classifier's new head is no "
        "finding, nor is a new pooler.",
        "these layers started from random numbers: check that spec.model is a model for this task",
        "training",
        "transformers",
    ),
    FindingType.NO_BETTER_THAN_CONSTANT: FindingInfo(
        f"On at least {MIN_HELD_OUT_ROWS} held-out rows, the loss is not {_percent(LOSS_TOLERANCE)} below that of the best "
        "constant answer, and accuracy (microF1 for MultiLabel, f1 for token-classification) is at most "
        f"{STANDARD_ERRORS:g} standard error above it.",
        "check the labels, try another spec.training.learningRate, or train for more steps",
        "late",
        "mosbach",
    ),
    FindingType.ONE_CLASS_PREDICTED: FindingInfo(
        f"All other classes together are predicted less than {_percent(OTHER_CLASSES_FACTOR)} as often as they occur, in at "
        f"least {MIN_HELD_OUT_ROWS} held-out rows (or words) of them.",
        "try another spec.training.learningRate, or set spec.classification.balanced",
        "late",
        "mosbach",
    ),
    FindingType.HELD_OUT_LOSS_ROSE: FindingInfo(
        f"The held-out loss is more than {_percent(HELD_OUT_RISE)} above that before the training, on at least "
        f"{MIN_HELD_OUT_ROWS} rows.",
        "lower spec.training.learningRate, or train for fewer epochs",
        "late",
        "karpathy",
    ),
    FindingType.REWARD_MARGIN_FELL: FindingInfo(
        f"dpo: the reward margin on at least {MIN_HELD_OUT_ROWS} held-out pairs is negative, or it has lost more than "
        f"{_percent(1 - MARGIN_KEPT)} of its highest value.",
        "check that chosen and rejected are not swapped, and lower spec.training.learningRate",
        "late",
        "trl",
    ),
    FindingType.CHOSEN_ANSWERS_LESS_LIKELY: FindingInfo(
        f"dpo: the chosen answers' log-probability on at least {MIN_HELD_OUT_ROWS} held-out pairs is below "
        f"{CHOSEN_LOGPS_FACTOR:g} times that before the training (it is negative).",
        "lower spec.training.learningRate, raise spec.dpo.beta, or train with task sft on the chosen answers first",
        "late",
        "pal",
    ),
    FindingType.OVERFITTING: FindingInfo(
        f"The held-out loss is more than {_percent(OVERFIT_RISE)} above its lowest value, by more than "
        f"{_percent(OVERFIT_SHARE)} of the loss of the constant answer (dpo: before the training). The training loss has fallen "
        "since, and no other metric is better than it was then. Not with spec.evaluation.best, or on fewer than "
        f"{MIN_HELD_OUT_ROWS} rows.",
        "set spec.evaluation.best, or train for fewer epochs",
        "late",
        "sagemaker",
    ),
    FindingType.LOSS_DOES_NOT_FALL: FindingInfo(
        f"The training loss of the last quarter of at least {MIN_LOGGED_STEPS} log lines is not below that of the first "
        f"quarter, and the held-out loss is not {_percent(LOSS_TOLERANCE)} below that before the training.",
        "try another spec.training.learningRate, and check the labels",
        "late",
        "sagemaker",
    ),
    FindingType.LOSS_JUMPS: FindingInfo(
        f"At least {MIN_JUMPS} times, two logged training losses in a row are above that of the first line and {JUMP_FACTOR:g} "
        f"times the median of the {JUMP_WINDOW} lines before. A batch with a wrong label raises only one.",
        "lower spec.training.learningRate, or add spec.training.warmupRatio",
        "training",
        "playbook",
    ),
    FindingType.LEARNING_RATE_ZERO: FindingInfo(
        f"In {_percent(ZERO_RATE_SHARE)} or more of at least {MIN_LOGGED_STEPS} log lines, the learning rate is 0.",
        "check the scheduler and its spec.training.arguments",
        "late",
        "karpathy",
    ),
    FindingType.GRADIENTS_CLIPPED: FindingInfo(
        f"In more than {_percent(CLIPPED_SHARE)} of at least {MIN_LOGGED_STEPS} log lines, the gradient's norm is more than "
        f"{CLIP_FACTOR:g} times the limit to which it is clipped (max_grad_norm, 1 by default). Not for Regression, whose "
        "gradients have the scale of its numbers.",
        "lower spec.training.learningRate, or raise max_grad_norm in spec.training.arguments",
        "training",
        "playbook",
    ),
    FindingType.NOTHING_TO_LEARN: FindingInfo(
        f"sft, dpo, masked-lm: {_percent(LEFT_OUT_SHARE)} or more of the training rows have no token to learn, for example "
        "because their answers lie beyond maxTokens.",
        "raise spec.training.maxTokens, or check spec.datasets.columns with finetune preview",
        "data",
        "trl",
    ),
    FindingType.ROWS_LEFT_OUT: FindingInfo(
        f"{_percent(LEFT_OUT_SHARE)} or more of the rows that were read are left out, for example because a text is empty.",
        "correct these rows, or check spec.datasets.columns",
        "data",
        "deepchecks",
    ),
    FindingType.LABELS_DISAGREE: FindingInfo(
        f"{_percent(DISAGREEING_SHARE)} or more of the training rows have a text that another row has with another label.",
        "correct the labels of these texts",
        "data",
        "deepchecks",
    ),
    FindingType.RARE_CLASS: FindingInfo(
        f"A class of text-classification has fewer than {RARE_CLASS_ROWS} training rows.",
        "add rows of this class, or merge it with another",
        "data",
        "sagemaker",
    ),
    FindingType.ROWS_CUT: FindingInfo(
        f"{_percent(CUT_SHARE)} or more of the training rows are cut at maxTokens. For a classifier, only if accuracy "
        f"(microF1, f1) on the held-out data is below {GOOD_METRIC:g}: otherwise the beginning of a text is enough.",
        "raise spec.training.maxTokens if the model can take more",
        "data",
        "trl",
    ),
    FindingType.WAITING_FOR_DATA: FindingInfo(
        f"Of at least {MIN_SECONDS_OF_STEPS:g} s of steps, {_percent(DATA_WAIT_SHARE)} or more was spent waiting for the next "
        "batch.",
        "add dataloader_num_workers to spec.training.arguments, give the pods more CPUs, or set spec.cache",
        "training",
        "sagemaker",
    ),
    FindingType.MEMORY_UNUSED: FindingInfo(
        f"On a GPU: at most {_percent(MEMORY_SHARE)} of its memory was used, although each step takes several forward passes.",
        "raise spec.training.perDeviceBatchSize: the steps become faster and stay the same",
        "training",
        "sagemaker",
    ),
}
