"""Memory and bf16 support of GPUs, by the product names in node labels."""

import dataclasses
import re
from collections.abc import Mapping

from finetune_api.quantities import GIB
from finetune_api.spec.affinity import Affinity

PRODUCT_LABEL = "nvidia.com/gpu.product"  # set by NVIDIA's GPU feature discovery; the value is the product name with dashes
MEMORY_LABEL = "nvidia.com/gpu.memory"  # in MiB
GKE_LABEL = "cloud.google.com/gke-accelerator"
_MIB = 1024**2

# Product → (MiB as nvidia-smi shows them, whether it supports bf16: compute capability 8 and later).
_PRODUCTS: dict[str, tuple[int, bool]] = {
    "Tesla-T4": (15360, False),
    "Tesla-P100-PCIE-16GB": (16280, False),
    "Tesla-V100-SXM2-16GB": (16160, False),
    "Tesla-V100-PCIE-16GB": (16160, False),
    "Tesla-V100-SXM2-32GB": (32510, False),
    "Tesla-V100-PCIE-32GB": (32510, False),
    "NVIDIA-A2": (15356, True),
    "NVIDIA-L4": (23034, True),
    "NVIDIA-A10": (23028, True),
    "NVIDIA-A10G": (23028, True),
    "NVIDIA-A30": (24258, True),
    "NVIDIA-GeForce-RTX-3090": (24268, True),
    "NVIDIA-GeForce-RTX-4090": (24564, True),
    "NVIDIA-GeForce-RTX-5090": (32607, True),
    "NVIDIA-A100-PCIE-40GB": (40536, True),
    "NVIDIA-A100-SXM4-40GB": (40536, True),
    "NVIDIA-A40": (46068, True),
    "NVIDIA-L20": (46068, True),
    "NVIDIA-L40": (46068, True),
    "NVIDIA-L40S": (46068, True),
    "NVIDIA-RTX-A6000": (49140, True),
    "NVIDIA-A100-SXM4-80GB": (81251, True),
    "NVIDIA-A100-80GB-PCIe": (81251, True),
    "NVIDIA-A800-SXM4-80GB": (81251, True),
    "NVIDIA-A800-80GB-PCIe": (81251, True),
    "NVIDIA-H800": (81559, True),
    "NVIDIA-H800-PCIe": (81559, True),
    "NVIDIA-H100-PCIe": (81559, True),
    "NVIDIA-H100-80GB-HBM3": (81559, True),
    "NVIDIA-H100-NVL": (95830, True),
    "NVIDIA-H20": (97871, True),
    "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition": (97887, True),
    "NVIDIA-RTX-PRO-6000-Blackwell-Workstation-Edition": (97887, True),
    "NVIDIA-GH200-480GB": (97871, True),
    "NVIDIA-H200": (143771, True),
    "NVIDIA-H200-NVL": (143771, True),
    "NVIDIA-B200": (183359, True),
    "NVIDIA-GB200": (189471, True),
    "NVIDIA-B300-SXM6-AC": (275040, True),
    "NVIDIA-GB300": (284208, True),
}
_GKE = {
    "nvidia-tesla-t4": "Tesla-T4",
    "nvidia-tesla-p100": "Tesla-P100-PCIE-16GB",
    "nvidia-tesla-v100": "Tesla-V100-SXM2-16GB",
    "nvidia-l4": "NVIDIA-L4",
    "nvidia-tesla-a100": "NVIDIA-A100-SXM4-40GB",
    "nvidia-a100-80gb": "NVIDIA-A100-SXM4-80GB",
    "nvidia-h100-80gb": "NVIDIA-H100-80GB-HBM3",
    "nvidia-h100-mega-80gb": "NVIDIA-H100-80GB-HBM3",
    "nvidia-h200-141gb": "NVIDIA-H200",
    "nvidia-b200": "NVIDIA-B200",
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU that a job requests. memory: bytes. bf16: whether the GPU supports it; None if not known."""

    name: str
    memory: int
    bf16: bool | None


def find_gpu(name: str) -> Gpu | None:
    """Return the GPU with the name in a label's value; None if not known. The name of a slice (MIG) states its memory."""
    product, _, part = name.removesuffix("-SHARED").partition("-MIG-")
    product = _GKE.get(product, product)
    if product not in _PRODUCTS:
        return None
    memory, bf16 = _PRODUCTS[product]
    slice_gb = re.search(r"\.(\d+)gb", part)
    return Gpu(name, int(slice_gb[1]) * GIB * 95 // 100 if slice_gb else memory * _MIB, bf16)


def requested_gpu(node_selector: Mapping[str, str], affinity: Affinity | None) -> tuple[Gpu | None, str | None]:
    """Return the GPU that a pod's node selector or affinity requests, the smallest of several; else None and the reason."""
    names = [node_selector[label] for label in (PRODUCT_LABEL, GKE_LABEL) if label in node_selector]
    names = names or (_affinity_values(affinity) if affinity else [])
    found = [gpu for gpu in map(find_gpu, names) if gpu is not None]
    if len(found) < len(names):
        unknown = next(name for name in names if find_gpu(name) is None)
        return None, f"the memory of {unknown} is not known here; add --gpu-memory, for example --gpu-memory 80Gi"
    if found:
        return min(found, key=lambda gpu: gpu.memory), None
    if node_selector.get(MEMORY_LABEL, "").isdigit():
        memory = int(node_selector[MEMORY_LABEL])
        return Gpu(f"{MEMORY_LABEL}={memory}", memory * _MIB, None), None
    return None, f"the GPU model is not known: add --gpu-memory, or {PRODUCT_LABEL} to spec.pod.nodeSelector"


def _affinity_values(affinity: Affinity) -> list[str]:
    """Return the GPU products of the nodes that the affinity requires."""
    nodes = affinity.node_affinity
    required = nodes.required_during_scheduling_ignored_during_execution if nodes else None
    return [
        value
        for term in (required.node_selector_terms if required else ())
        for expression in term.match_expressions or ()
        if expression.key in (PRODUCT_LABEL, GKE_LABEL) and expression.operator == "In"
        for value in expression.values or ()
    ]


def gpus_with(memory: int) -> list[str]:
    """Return the products with at least this memory in bytes, the smallest first."""
    fitting = sorted((size, name) for name, (size, _) in _PRODUCTS.items() if size * _MIB >= memory)
    return [name.removeprefix("NVIDIA-") for _, name in fitting]
