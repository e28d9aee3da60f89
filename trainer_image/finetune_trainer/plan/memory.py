"""How much memory one training process needs, by part: pure arithmetic.

Of what is trained there are weights, gradients and the two moments of AdamW, in fp32 (mixed precision keeps them so) 4, 4 and 8
bytes per parameter; of what adapters leave as it is, the weights alone. Logits over a vocabulary are held three times in fp32 at
the loss: themselves, their log-softmax and its gradient.
Activations are what autograd keeps from the forward pass for the backward pass. Per layer that is a number of bytes for each
token and unit of width, which depends on the architecture, plus what the attention keeps. The numbers were measured with
torch 2.13 and transformers 5.23 by ``torch.autograd.graph.saved_tensors_hooks`` on layers of different widths, lengths and
numbers of heads, in fp32 and under bf16 autocast. tests/unit/trainer/test_memory.py measures again: all-MiniLM-L6-v2 on two
shapes of batch, in both precisions, with dropout and without, where the estimates are within 1 %, and small models of every type
named below, within 25 %. For other types the numbers of BERT, or of Llama where the MLP has a gate, are taken.

On a GPU the attention is torch's fused kernel, which keeps no matrix of tokens × tokens per head; a mask of dropout takes one
byte there, on the CPU as much as the number itself. Not measured, but estimated: CUDA's own memory, and the gradients' second
copy in the buckets of DistributedDataParallel.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Attention = Literal["fused", "eager", "disentangled"]
MIB = 1024**2

# CUDA context, workspaces of cuBLAS, and what the allocator can't use. With several processes NCCL's buffers besides.
CUDA_BYTES = 1024 * MIB
NCCL_BYTES = 512 * MIB
# Python with torch, transformers and datasets imported, of one process: measured, 463 MiB.
CPU_BYTES = 512 * MIB
_FP32, _HALF = 0, 1
_LOGITS_BYTES = 12
# What the dropout before an adapter keeps of its layer's input, less what the frozen layer no longer keeps: bytes per token and
# unit of width, in (fp32, half precision).
_ADAPTED = (5, 4)


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a layer keeps: bytes per token and unit of hidden, or inner, width, in (fp32, half precision).

    dropouts: applications of dropout to the hidden states, each of which keeps a mask.
    """

    hidden: tuple[int, int]
    inner: tuple[int, int]
    attention: Attention = "fused"
    dropouts: int = 0


_BERT = Traits((32, 24), (8, 4), dropouts=2)
_GATED = Traits((40, 34), (16, 8))
TRAITS: dict[str, Traits] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": dataclasses.replace(_BERT, dropouts=1),
    "mpnet": dataclasses.replace(_BERT, attention="eager"),
    "albert": Traits((32, 16), (20, 10), dropouts=1),  # gelu_new is several operations, each of which keeps its input
    "deberta-v2": Traits((36, 26), (8, 4), "disentangled", dropouts=2),
    "modernbert": Traits((40, 24), (16, 8)),
    "gpt2": Traits((40, 24), (20, 10)),
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma"), _GATED),
    "qwen3": Traits((56, 46), (16, 8)),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What of a model's config.json decides about activations.

    positions: the longest input in tokens, None where the model has no limit. relative: rows of DeBERTa's table of relative
    positions. known: whether the traits were measured for this type.
    """

    model_type: str
    traits: Traits
    known: bool
    hidden: int
    inner: int
    layers: int
    heads: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    positions: int | None = None
    pad_token_id: int | None = None
    relative: int = 0
    vocabulary: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], gated: bool) -> "Architecture":
        """From config.json, whatever the type calls its sizes; raise ValueError when it does not say them.

        gated: whether the MLP has a gate, as the names of the weights tell.
        """
        if isinstance(config.get("text_config"), Mapping):
            config = {**config, **config["text_config"]}
        model_type = str(config.get("model_type", ""))
        hidden = _size(config, "hidden_size", "dim", "d_model", "n_embd")
        return cls(
            model_type=model_type,
            traits=TRAITS.get(model_type, _GATED if gated else _BERT),
            known=model_type in TRAITS,
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
            relative=_relative_positions(config),
            vocabulary=int(_first(config, "vocab_size", default=0)),
        )


@dataclasses.dataclass(frozen=True)
class Weights:
    """What is held of a model. frozen: bytes of weights that stay as they are. trained: numbers that are trained, size: bytes of
    each. multiplied: numbers of the matrices that autocast keeps a copy of in half precision. adapted: widths of the
    inputs of all layers that have adapters with dropout, added up.
    """

    frozen: int
    trained: int
    size: int = 4
    multiplied: int = 0
    adapted: int = 0


@dataclasses.dataclass(frozen=True)
class Pass:
    """One forward pass of one process: rows × tokens. half: computed in half precision. world: processes in all. predicted: share
    of the positions that logits over the vocabulary are computed of. checkpointing: only the input of each layer is kept.
    """

    rows: int
    tokens: int
    half: bool
    gpu: bool
    world: int = 1
    predicted: float = 0.0
    checkpointing: bool = False


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one process, by part. runtime: what CUDA, or Python with its libraries, takes for itself."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """All parts: gradients grow while activations go, so the true peak lies a little below."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.runtime


def estimate(architecture: Architecture, weights: Weights, shape: Pass) -> Estimate:
    """Memory of one process at its peak."""
    kept = activation_bytes(architecture, shape, weights.adapted) + (2 * weights.multiplied if shape.half else 0)
    kept += int(_LOGITS_BYTES * shape.rows * shape.tokens * shape.predicted) * architecture.vocabulary
    trained = weights.size * weights.trained
    return Estimate(
        weights=weights.frozen + trained,
        gradients=trained * (2 if shape.world > 1 else 1),
        optimizer=2 * trained,
        activations=kept,
        runtime=(CUDA_BYTES + (NCCL_BYTES if shape.world > 1 else 0)) if shape.gpu else CPU_BYTES,
    )


def activation_bytes(architecture: Architecture, shape: Pass, adapted: int = 0) -> int:
    """Bytes that autograd keeps of one forward pass, without autocast's copies of the weights, and without logits."""
    a, traits, which = architecture, architecture.traits, _HALF if shape.half else _FP32
    positions = shape.rows * shape.tokens
    wide = positions * a.hidden
    mask = (1 if shape.gpu else (2 if shape.half else 4)) if a.dropout else 0
    layer = wide * traits.hidden[which] + positions * a.inner * traits.inner[which]
    layer += traits.dropouts * mask * wide + _attention_bytes(a, shape)
    embeddings = wide * (4 + mask)  # the input of their norm, and dropout's mask
    adapters = positions * adapted * _ADAPTED[which]
    if shape.checkpointing:
        return a.layers * wide * (2 if shape.half else 4) + layer + adapters // a.layers + embeddings
    return a.layers * layer + adapters + embeddings


def _attention_bytes(a: Architecture, shape: Pass) -> int:
    """What one layer's attention keeps besides queries, keys, values and output, which count as hidden states."""
    rows, tokens, half, gpu = shape.rows, shape.tokens, shape.half, shape.gpu
    scores, size = a.heads * rows * tokens**2, 2 if half else 4
    mask = (1 if gpu else size) if a.attention_dropout else 0
    if a.traits.attention == "disentangled":
        table = rows * a.relative * (a.heads * tokens + a.hidden) * 2 * size
        return scores * (2 * size + mask) + table
    if a.traits.attention == "eager":
        return scores * ((6 if half else 4) + (((2 if half else 4) + mask) if a.attention_dropout else 0))
    if gpu or not a.attention_dropout:
        return size * rows * tokens**2 + 8 * a.heads * rows * tokens  # the padding's mask, once for all heads; the log-sum
    # torch's kernel for CPUs knows no dropout: plain products, in fp32, of which scores, mask and result are kept.
    return 12 * scores + (6 if half else 0) * rows * tokens * a.hidden


def _first(config: Mapping[str, Any], *names: str, default: Any) -> Any:
    """The first of the names that has a value."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def _relative_positions(config: Mapping[str, Any]) -> int:
    """Rows of DeBERTa's table: both directions, as many as there are buckets or, without those, positions."""
    if not config.get("relative_attention"):
        return 0
    names = ("position_buckets", "max_relative_positions", "max_position_embeddings")
    return 2 * next((config[name] for name in names if isinstance(config.get(name), int) and config[name] > 0), 0)


def _size(config: Mapping[str, Any], *names: str) -> int:
    value = _first(config, *names, default=None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json has no {' or '.join(names)}")
    return value
