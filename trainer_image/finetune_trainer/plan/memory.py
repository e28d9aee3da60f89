"""Estimates how much memory one training process needs, by part: pure arithmetic.

Trained parameters have weights, gradients and the two moments of AdamW: 4, 4 and 8 bytes per parameter in fp32, also with
mixed precision. Parameters that are frozen below adapters have weights only. Logits over a vocabulary are held three times in
fp32 when the loss is computed: the logits, their log-softmax and its gradient.
Activations are the tensors that autograd keeps from the forward pass for the backward pass. A layer keeps a number of bytes per
token and unit of width, which depends on the architecture, and additionally the tensors of its attention. The numbers were
measured with torch 2.13 and transformers 5.23 by ``torch.autograd.graph.saved_tensors_hooks``, on layers of different widths,
lengths and numbers of heads, in fp32 and under bf16 autocast. tests/unit/trainer/test_memory.py repeats the measurement. For
all-MiniLM-L6-v2 with two batch shapes, in both precisions, with and without dropout, the estimates are within 1 %. For small
models of every type named below they are within 25 %. Other types use the numbers of BERT, or of Llama if the MLP has a gate.

On a GPU, attention uses torch's fused kernel, which keeps no matrix of tokens × tokens per head. A dropout mask takes one byte
per element on a GPU, and as many bytes as the element itself on a CPU. CUDA's own memory and the second copy of the gradients
in the buckets of DistributedDataParallel are estimated, not measured.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Attention = Literal["fused", "eager", "disentangled"]
MIB = 1024**2

# CUDA context, workspaces of cuBLAS, and memory that the allocator can't use. With several processes, NCCL's buffers are added.
CUDA_BYTES = 1024 * MIB
NCCL_BYTES = 512 * MIB
# One Python process that has imported torch, transformers and datasets: 463 MiB measured.
CPU_BYTES = 512 * MIB
_FP32, _HALF = 0, 1
_LOGITS_BYTES = 12
# Additional bytes of a layer with an adapter, per token and unit of input width, in (fp32, half precision): the bytes that the
# dropout before the adapter keeps of the input, minus the bytes that the frozen layer no longer keeps.
_ADAPTED = (5, 4)


@dataclasses.dataclass(frozen=True)
class ActivationProfile:
    """Activations that one layer keeps.

    hidden, inner: bytes per token and unit of hidden and inner width, in (fp32, half precision). dropouts: how often the layer
    applies dropout to the hidden states; each time keeps a mask.
    """

    hidden: tuple[int, int]
    inner: tuple[int, int]
    attention: Attention = "fused"
    dropouts: int = 0


_BERT = ActivationProfile((32, 24), (8, 4), dropouts=2)
_GATED = ActivationProfile((40, 34), (16, 8))
ACTIVATION_PROFILES: dict[str, ActivationProfile] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": dataclasses.replace(_BERT, dropouts=1),
    "mpnet": dataclasses.replace(_BERT, attention="eager"),
    "albert": ActivationProfile((32, 16), (20, 10), dropouts=1),  # gelu_new is several operations, and each keeps its input
    "deberta-v2": ActivationProfile((36, 26), (8, 4), "disentangled", dropouts=2),
    "modernbert": ActivationProfile((40, 24), (16, 8)),
    "gpt2": ActivationProfile((40, 24), (20, 10)),
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma"), _GATED),
    "qwen3": ActivationProfile((56, 46), (16, 8)),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The fields of a model's config.json that determine its activations.

    positions: the longest input in tokens, None if the model has no limit. relative_positions: rows of DeBERTa's table of
    relative positions. measured: whether the profile was measured for this type.
    """

    model_type: str
    profile: ActivationProfile
    measured: bool
    hidden: int
    inner: int
    layers: int
    heads: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    positions: int | None = None
    pad_token_id: int | None = None
    relative_positions: int = 0
    vocabulary: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], gated: bool) -> "Architecture":
        """Read config.json, whose field names depend on the model type. Raise ValueError if a size is missing.

        gated: whether the MLP has a gate, according to the names of the weights.
        """
        if isinstance(config.get("text_config"), Mapping):
            config = {**config, **config["text_config"]}
        model_type = str(config.get("model_type", ""))
        hidden = _size(config, "hidden_size", "dim", "d_model", "n_embd")
        return cls(
            model_type=model_type,
            profile=ACTIVATION_PROFILES.get(model_type, _GATED if gated else _BERT),
            measured=model_type in ACTIVATION_PROFILES,
            hidden=hidden,
            inner=int(_first(config, "intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff", default=4 * hidden)),
            layers=_size(config, "num_hidden_layers", "n_layers", "n_layer", "num_layers"),
            heads=_size(config, "num_attention_heads", "n_heads", "n_head", "num_heads"),
            dropout=float(_first(config, "hidden_dropout_prob", "dropout", "resid_pdrop", default=0.0)),
            attention_dropout=float(
                _first(config, "attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", default=0.0)
            ),
            positions=_first(config, "max_position_embeddings", "n_positions", default=None),
            pad_token_id=_first(config, "pad_token_id", default=None),
            relative_positions=_relative_positions(config),
            vocabulary=int(_first(config, "vocab_size", default=0)),
        )


@dataclasses.dataclass(frozen=True)
class WeightLayout:
    """How one process holds a model's weights.

    frozen_bytes: bytes of frozen weights. trainable: number of trained parameters. trainable_bytes_each: bytes of each of them.
    autocast_parameters: number of parameters in matrices of which autocast keeps a copy in half precision.
    adapter_input_width: sum of the input widths of all layers that have adapters with dropout.
    """

    frozen_bytes: int
    trainable: int
    trainable_bytes_each: int = 4
    autocast_parameters: int = 0
    adapter_input_width: int = 0


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """One forward pass of one process: rows × tokens.

    half: computed in half precision. world_size: number of processes. logit_share: share of the positions for which logits over
    the vocabulary are computed. checkpointing: only the input of each layer is kept.
    """

    rows: int
    tokens: int
    half: bool
    gpu: bool
    world_size: int = 1
    logit_share: float = 0.0
    checkpointing: bool = False


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one process, by part. runtime: memory of CUDA itself, or of Python with its libraries."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """Sum of all parts. Gradients grow while activations are freed, so the true peak is a little lower."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.runtime


def estimate(architecture: Architecture, weights: WeightLayout, shape: ForwardPass) -> Estimate:
    """Return the peak memory of one process."""
    kept = activation_bytes(architecture, shape, weights.adapter_input_width) + (
        2 * weights.autocast_parameters if shape.half else 0
    )
    kept += int(_LOGITS_BYTES * shape.rows * shape.tokens * shape.logit_share) * architecture.vocabulary
    trained = weights.trainable_bytes_each * weights.trainable
    return Estimate(
        weights=weights.frozen_bytes + trained,
        gradients=trained * (2 if shape.world_size > 1 else 1),
        optimizer=2 * trained,
        activations=kept,
        runtime=(CUDA_BYTES + (NCCL_BYTES if shape.world_size > 1 else 0)) if shape.gpu else CPU_BYTES,
    )


def activation_bytes(architecture: Architecture, shape: ForwardPass, adapter_input_width: int = 0) -> int:
    """Return the bytes that autograd keeps from one forward pass, without logits and autocast's copies of the weights."""
    a, profile, which = architecture, architecture.profile, _HALF if shape.half else _FP32
    positions = shape.rows * shape.tokens
    wide = positions * a.hidden
    mask = (1 if shape.gpu else (2 if shape.half else 4)) if a.dropout else 0
    layer = wide * profile.hidden[which] + positions * a.inner * profile.inner[which]
    layer += profile.dropouts * mask * wide + _attention_bytes(a, shape)
    embeddings = wide * (4 + mask)  # the input of their norm, and the dropout mask
    adapters = positions * adapter_input_width * _ADAPTED[which]
    if shape.checkpointing:
        return a.layers * wide * (2 if shape.half else 4) + layer + adapters // a.layers + embeddings
    return a.layers * layer + adapters + embeddings


def _attention_bytes(a: Architecture, shape: ForwardPass) -> int:
    """Return the bytes of one layer's attention, without queries, keys, values and output, which count as hidden states."""
    rows, tokens, half, gpu = shape.rows, shape.tokens, shape.half, shape.gpu
    scores, size = a.heads * rows * tokens**2, 2 if half else 4
    mask = (1 if gpu else size) if a.attention_dropout else 0
    if a.profile.attention == "disentangled":
        table = rows * a.relative_positions * (a.heads * tokens + a.hidden) * 2 * size
        return scores * (2 * size + mask) + table
    if a.profile.attention == "eager":
        return scores * ((6 if half else 4) + (((2 if half else 4) + mask) if a.attention_dropout else 0))
    if gpu or not a.attention_dropout:
        return size * rows * tokens**2 + 8 * a.heads * rows * tokens  # the padding mask, shared by all heads, and the log-sum
    # torch's CPU kernel has no dropout. Instead, plain products in fp32 keep scores, mask and result.
    return 12 * scores + (6 if half else 0) * rows * tokens * a.hidden


def _first(config: Mapping[str, Any], *names: str, default: Any) -> Any:
    """Return the value of the first name that has one."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def _relative_positions(config: Mapping[str, Any]) -> int:
    """Return the rows of DeBERTa's table: two for each bucket or, without buckets, for each position."""
    if not config.get("relative_attention"):
        return 0
    names = ("position_buckets", "max_relative_positions", "max_position_embeddings")
    return 2 * next((config[name] for name in names if isinstance(config.get(name), int) and config[name] > 0), 0)


def _size(config: Mapping[str, Any], *names: str) -> int:
    value = _first(config, *names, default=None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json has no {' or '.join(names)}")
    return value
