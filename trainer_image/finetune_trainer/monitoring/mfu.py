"""Model FLOPs utilisation: the FLOPs that the model needs for the trained tokens, as a share of the GPU's peak.

The formula is that of PaLM (Chowdhery et al. 2022, appendix B). Activation recomputation, padding, and the forward passes of a
reference model (dpo) do not count, because the model does not need this work.
"""

import dataclasses
import re

import numpy as np

_TERA = 1e12
# Driver's name of the GPU → peak in TFLOP/s for dense matrices in bf16, or in fp16 if the GPU has no bf16 (V100, T4). The first
# match counts. The numbers are from the makers' data sheets, which often print the value for sparse matrices, which is twice as
# high. Sources: nvidia.com/en-us/data-center/{gb300-nvl72, hgx (B300), gb200-nvl72, b200, h200, h100, gh200, a100, a30, a40, a10,
# l40s, l40, l4, tesla-t4, v100}, RTX A6000; NVIDIA's data sheets of H800, H20, A800 and L20, which are sold in China; its white
# papers of Ampere, Ada and Blackwell (GeForce and RTX PRO, with accumulation in fp32); AWS for the A10G (made for AWS);
# amd.com/en/products/accelerators/instinct/{mi355x, mi350x, mi325x, mi300x} and mi250x (half a card, each half is a device).
_PEAKS_TFLOPS: tuple[tuple[str, float], ...] = (
    (r"\bGB[23]00\b", 2500.0),
    (r"\bB[23]00\b", 2250.0),
    (r"\bH200 NVL\b", 835.5),
    (r"\bH200\b", 989.5),
    (r"\bGH200\b", 989.5),
    (r"\bH100 NVL\b", 835.5),
    (r"\bH[18]00 PCIe\b", 756.5),
    (r"\bH[18]00\b", 989.5),
    (r"\bH20\b", 148.0),
    (r"\bA[18]00\b", 312.0),
    (r"\bA30\b", 165.0),
    (r"\bA40\b", 149.7),
    (r"\bA10G\b", 70.0),
    (r"\bA10\b", 125.0),
    (r"\bL40S\b", 362.05),
    (r"\bL40\b", 181.05),
    (r"\bL20\b", 119.5),
    (r"\bL4\b", 121.0),
    (r"\bRTX A6000\b", 154.8),
    (r"\bRTX PRO 6000 Blackwell (Server|Workstation) Edition", 503.8),
    (r"\bRTX 5090$", 209.5),
    (r"\bRTX 4090\b", 165.2),
    (r"\bRTX 3090\b", 71.0),
    (r"\bT4\b", 65.0),
    (r"\bV100-PCIE", 112.0),
    (r"\bV100", 125.0),
    (r"\bMI355X\b", 2516.6),
    (r"\bMI350X\b", 2306.9),
    (r"\bMI3(00|25)X\b", 1307.4),
    (r"\bMI250X?\b", 191.5),
)


def peak_flops(gpu: str) -> float | None:
    """Return the peak of a GPU in FLOP/s, by its driver's name; None if it is unknown, for example for a slice (MIG)."""
    if "MIG" in gpu:
        return None
    return next((peak * _TERA for pattern, peak in _PEAKS_TFLOPS if re.search(pattern, gpu)), None)


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The size of a model. parameters: weights that multiply each token, so without embedding tables.

    trainable: how many of them are trained. attention: layers × width of all heads, which multiply the tokens with each other.
    """

    parameters: int
    trainable: int
    attention: int

    def flops_per_token(self, length: float) -> float:
        """Return the FLOPs of forward and backward for one token in a row of ``length`` tokens.

        A weight costs 2 forward, 2 for the gradient of the layer below, and 2 for its own gradient, which a frozen weight (LoRA)
        does not have: 6N, or 4N frozen + 6N trained. Attention costs 12·L·H·Q·T.
        """
        return 4.0 * self.parameters + 2.0 * self.trainable + 12.0 * self.attention * length


def typical_length(lengths: np.ndarray) -> float:
    """Return the length of the row that a token is in, averaged over all tokens. lengths: tokens of each row, shape (rows,)."""
    total = float(lengths.sum())
    return float((lengths.astype(np.float64) ** 2).sum()) / total if total else 0.0
