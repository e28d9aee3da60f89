"""Model FLOPs utilisation: what a model needs for the tokens that were trained on, as a share of what the GPU could have done.

The formula is that of PaLM (Chowdhery et al. 2022, appendix B). Activations that are computed again, padding, and the forward
passes of a reference model (dpo) do not count: they are work, but none that the model needs.
"""

import dataclasses
import re

import numpy as np

_TERA = 1e12
# Name of the GPU as its driver gives it → peak in TFLOP/s for matrices in bf16, dense, that is without sparsity; fp16 where
# there is no bf16 (V100, T4). The first that matches counts. From the makers' data sheets, which often print the double, that of
# sparse matrices: nvidia.com/en-us/data-center/{b200, h200, h100, gh200, a100, a30, a40, a10, l40s, l40, l4, tesla-t4, v100},
# RTX A6000; NVIDIA's white papers of Ampere and Ada (GeForce, with accumulation in fp32); AWS for the A10G, which is made for it;
# amd.com/en/products/accelerators/instinct/{mi325x, mi300x} and mi250x (half a card, as each half is a device).
_PEAKS_TFLOPS: tuple[tuple[str, float], ...] = (
    (r"\bB200\b", 2250.0),
    (r"\bH200 NVL\b", 835.5),
    (r"\bH200\b", 989.5),
    (r"\bGH200\b", 989.5),
    (r"\bH100 NVL\b", 835.5),
    (r"\bH100 PCIe\b", 756.5),
    (r"\bH100\b", 989.5),
    (r"\bA100\b", 312.0),
    (r"\bA30\b", 165.0),
    (r"\bA40\b", 149.7),
    (r"\bA10G\b", 70.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.05),
    (r"\bL40\b", 181.05),
    (r"\bL4\b", 121.0),
    (r"\bRTX A6000\b", 154.8),
    (r"\bRTX 4090\b", 165.2),
    (r"\bRTX 3090\b", 71.0),
    (r"\bT4\b", 65.0),
    (r"\bV100-PCIE", 112.0),
    (r"\bV100", 125.0),
    (r"\bMI3(00|25)X\b", 1307.4),
    (r"\bMI250X?\b", 191.5),
)


def peak_flops(gpu: str) -> float | None:
    """Peak of a GPU in FLOP/s, by the name that its driver gives it; None where it is not known, as of a slice (MIG)."""
    if "MIG" in gpu:
        return None
    return next((peak * _TERA for pattern, peak in _PEAKS_TFLOPS if re.search(pattern, gpu)), None)


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """What counts of a model. weights: those that multiply each token, so no tables of embeddings; trained: those of them that
    are trained; attention: layers × width of all heads, which multiply the tokens with each other.
    """

    weights: int
    trained: int
    attention: int

    def flops_per_token(self, length: float) -> float:
        """Forward and backward, for a token in a row of so many tokens.

        A weight costs 2 forward, 2 for the gradient that goes on to the layer below, and 2 for its own, which a frozen one has
        not (LoRA): 6N, or 4N frozen + 6N trained; attention 12·L·H·Q·T.
        """
        return 4.0 * self.weights + 2.0 * self.trained + 12.0 * self.attention * length


def typical_length(lengths: np.ndarray) -> float:
    """Tokens of the row in which a token is, on average over tokens. lengths: tokens of each row, shape (rows,)."""
    total = float(lengths.sum())
    return float((lengths.astype(np.float64) ** 2).sum()) / total if total else 0.0
