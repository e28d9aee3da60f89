"""Tokenizer, configuration and model: from a repository or a directory to what a task trains, and to what is saved of it."""

import contextlib
import dataclasses
import importlib.util
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_trainer import adapters
from finetune_trainer.tasks.base import Task

log = logging.getLogger(__name__)

_SHARD_SIZE = "5GB"
# What transformers and the Hub's client raise for files that are missing, broken or of another kind.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError)

transformers.logging.disable_progress_bar()


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Where the model comes from: a repository and a commit, or a directory.

    field: what to name in an error. trust_remote_code: whether Python code of the repository may run.
    """

    name_or_path: str
    revision: str | None
    field: str
    trust_remote_code: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """For every ``from_pretrained``."""
        revision = {"revision": self.revision} if self.revision else {}
        return {**revision, "trust_remote_code": self.trust_remote_code}


def load_tokenizer(location: ModelLocation) -> Any:
    """The tokenizer, with a pad token and padding on the right. Raises FineTuneError where there is none."""
    with _named_errors(location, "no tokenizer can be read"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location.name_or_path, **location.arguments)
    if tokenizer.pad_token is None:  # of a decoder: padding is masked, so that any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{location.field}: its tokenizer has no token to pad with: write pad_token or eos_token into tokenizer_config.json",
        )
    tokenizer.padding_side = "right"
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def load_config(location: ModelLocation) -> Any:
    """The model's configuration. Raises FineTuneError where there is none."""
    with _named_errors(location, "no model can be made of it"):
        return transformers.AutoConfig.from_pretrained(location.name_or_path, **location.arguments)


def load_model(task: Task, location: ModelLocation, spec: FineTuneJobSpec) -> Any:
    """The model of a task, in training shape: adapters in place, on the CPU unless its weights are quantized.

    New layers are drawn at random, so that the seed must be set before. Raises FineTuneError naming the field to blame.
    """
    source = spec.model
    factory = getattr(transformers, task.auto_model)
    with _named_errors(location, f"no model for {spec.task} can be made of it"):
        model, loading = factory.from_pretrained(
            location.name_or_path,
            **location.arguments,
            **task.model_arguments(),
            **_quantization(source),
            dtype=weights_dtype(source),
            use_safetensors=True,  # the other format is a program
            output_loading_info=True,
        )
    _fit_tokenizer(model, task.tokenizer)
    if source.lora:
        fresh = {key.rpartition(".")[0] for key in loading["missing_keys"]}
        fresh |= {key.rpartition(".")[0] for key, *_ in loading["mismatched_keys"]}
        model = adapters.apply_lora(model, task, source.lora, sorted(fresh))
    if spec.training.activation_checkpointing:
        checkpoint_activations(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("%s: %.1f million parameters, %.1f trained", type(model).__name__, model.num_parameters() / 1e6, trained / 1e6)
    return model


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass instead of keeping them."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if adapters.is_adapter(model):
        model.enable_input_require_grads()  # the embeddings are frozen: without it, nothing before an adapter has a gradient


def weights_dtype(source: ModelSource) -> torch.dtype:
    """Of the weights in memory: those that are trained stay fp32, as mixed precision needs them; frozen ones may be smaller."""
    if source.dtype == "auto":
        small = source.lora and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if small else torch.float32
    return torch.bfloat16 if source.dtype == "bfloat16" else torch.float32


def save_model(model: Any, tokenizer: Any, directory: pathlib.Path) -> None:
    """Write model (or adapter), configuration and tokenizer: safetensors in shards, nothing that names this machine."""
    with _ready_for_use(model):
        if adapters.is_adapter(model):
            adapters.save(model, directory)
        else:
            model.save_pretrained(directory, max_shard_size=_SHARD_SIZE)
    tokenizer.save_pretrained(directory)


def _quantization(source: ModelSource) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for ``spec.model.quantization``."""
    if source.quantization == "none":
        return {}
    if not torch.cuda.is_available():
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.model.quantization: {source.quantization} needs a CUDA GPU, and there is none here; write none, or ask for "
            "one with spec.distributed.gpusPerNode",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.model.quantization: {source.quantization} needs bitsandbytes, which is not installed here; install it, or "
            "write none",
        )
    if source.quantization == "int8":
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16,
        )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _fit_tokenizer(model: Any, tokenizer: Any) -> None:
    """Rows of the embeddings for all tokens, the same pad token, and no cache of keys and values while training."""
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # New rows start as the mean of the old: the same on every rank, whatever was drawn at random before.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        embeddings = {id(layer.weight): layer.weight for layer in _embeddings(model)}
        for weight in embeddings.values():
            weight.data[rows:] = weight.data[:rows].float().mean(dim=0).to(weight.dtype)
        log.info("%d tokens added to the vocabulary of %d", len(tokenizer) - rows, rows)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False


def _embeddings(model: Any) -> list[Any]:
    """Input and output embeddings; perhaps one and the same."""
    return [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]


@contextlib.contextmanager
def _ready_for_use(model: Any) -> Iterator[None]:
    """What is saved answers with a cache: that it was off belongs to the training, not to the model."""
    cached = getattr(model.config, "use_cache", None) is False
    if cached:
        model.config.use_cache = True
    try:
        yield
    finally:
        if cached:
            model.config.use_cache = False


@contextlib.contextmanager
def _named_errors(location: ModelLocation, problem: str) -> Iterator[None]:
    try:
        yield
    except FineTuneError:
        raise
    except _LOADING_ERRORS as error:
        if "trust_remote_code" in str(error) and not location.trust_remote_code:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{location.field}: the model comes with Python code of its own, which is not run unless you write "
                "spec.model.trustRemoteCode: true; choose another model if you do not trust its repository",
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{location.field}: {problem}: {reason[:400]} (config.json, tokenizer and safetensors weights are needed)",
        ) from error
