"""Tokenizer, configuration and model: from a repository or a directory to what a task trains, and to what is saved of it."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import safetensors
import torch
import transformers
from transformers.utils.peft_utils import find_adapter_config_file

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_trainer.hub import client as hub
from finetune_trainer.models import adapters, embeddings
from finetune_trainer.runtime import device
from finetune_trainer.runtime.disk import is_disk_full
from finetune_trainer.tasks.base import Task
from finetune_trainer.tasks.generation import end_tokens

log = logging.getLogger(__name__)

_SHARD_SIZE = "5GB"
# What transformers and the Hub's client raise for files that are missing, broken or of another kind.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, safetensors.SafetensorError)

transformers.logging.disable_progress_bar()


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Where the model comes from: a repository and a commit, or a directory.

    field: what to name in an error. trust_remote_code: whether Python code of the repository may run. base: where the model
    lies that the adapters there belong to, if they are adapters of a model that was a directory.
    """

    name_or_path: str
    revision: str | None
    field: str
    trust_remote_code: bool = False
    base: str | None = None

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
    with _named_errors(location, f"no model for {spec.task} can be made of it"):
        model, fresh = _load(task, location, source)
    if spec.training.activation_checkpointing and not model.supports_gradient_checkpointing:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.training.activationCheckpointing: {type(model).__name__} can't compute activations again; leave it out",
        )
    if source.lora:
        model = adapters.apply_lora(model, task, source.lora, fresh)
    if spec.training.activation_checkpointing:
        checkpoint_activations(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("%s: %.1f million parameters, %.1f trained", type(model).__name__, model.num_parameters() / 1e6, trained / 1e6)
    return model


def _load(task: Task, location: ModelLocation, source: ModelSource) -> tuple[Any, list[str]]:
    """The model as it lies there, and names of its modules that are not there, which are drawn at random."""
    below = _base_of(location)
    if below is not location and source.quantization != "none":
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.model.quantization: {location.field} holds adapters, which can't be added to quantized weights; write "
            "none, or start from a merged model",
        )
    model, loading = getattr(transformers, task.auto_model).from_pretrained(
        below.name_or_path,
        **below.arguments,
        **task.model_arguments(),
        **_quantization(source),
        dtype=weights_dtype(source),
        use_safetensors=True,  # the other format is a program
        output_loading_info=True,
    )
    _fit_tokenizer(model, task.tokenizer)
    if below is not location:
        model = adapters.merge_into(model, location.name_or_path, location.revision)
        # New adapters belong to the sum of both, not to the model below.
        model.name_or_path, model.config._commit_hash = location.name_or_path, location.revision
    keys = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    return model, sorted({key.rpartition(".")[0] for key in keys})


def _base_of(location: ModelLocation) -> ModelLocation:
    """The location itself, or of adapters (an earlier job's, or the Hub's) that of the model below them."""
    found = find_adapter_config_file(location.name_or_path, revision=location.revision)
    if found is None:
        return location
    config = json.loads(pathlib.Path(found).read_text())
    name = location.base or config["base_model_name_or_path"]
    if name == adapters.LOCAL_BASE:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{location.field}: it holds adapters alone, and the model that they belong to was a directory, not one of the Hub; "
            "merge them into it, and write the directory of the merged model",
        )
    return dataclasses.replace(location, name_or_path=name, revision=None if location.base else config.get("revision"))


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward pass instead of keeping them."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    if adapters.is_adapter(model):
        model.enable_input_require_grads()  # the embeddings are frozen: without it, nothing before an adapter has a gradient


def weights_dtype(source: ModelSource) -> torch.dtype:
    """Of the weights in memory: those that are trained stay fp32, as mixed precision needs them; frozen ones may be smaller."""
    if source.dtype == "auto":
        small = source.lora and device.computes_bf16()
        return torch.bfloat16 if small else torch.float32
    return torch.bfloat16 if source.dtype == "bfloat16" else torch.float32


def merged(model: Any) -> Any:
    """The full model: with adapters, these added to its weights, which uses the model up; without, as it is."""
    return adapters.merged(model)


def save_model(model: Any, tokenizer: Any, directory: pathlib.Path) -> None:
    """Write model (or adapter), configuration and tokenizer: safetensors in shards, nothing that names this machine."""
    with _ready_for_use(model):
        if adapters.is_adapter(model):
            adapters.save(model, directory)
        else:
            model.save_pretrained(directory, max_shard_size=_SHARD_SIZE)
    tokenizer.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):  # which safetensors lets nobody else read, as it does no other job
        weights.chmod((directory / "config.json").stat().st_mode)


def _quantization(source: ModelSource) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for ``spec.model.quantization``."""
    if source.quantization == "none":
        return {}
    if not device.has_gpu():
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
            bnb_4bit_compute_dtype=device.half_dtype(),
        )
    return {"quantization_config": config, "device_map": {"": device.current_device()}}


def _fit_tokenizer(model: Any, tokenizer: Any) -> None:
    """Rows of the embeddings for all tokens, the same pad token, and no cache of keys and values while training."""
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = end_tokens(model, tokenizer)
    added = embeddings.grow(model, len(tokenizer))
    if added:
        log.info("%d tokens added to a vocabulary of %d", added, len(tokenizer) - added)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False


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
    except (*_LOADING_ERRORS, *hub.HUB_ERRORS) as error:
        if is_disk_full(error):
            raise
        if said := hub.trouble(error, location.field, location.name_or_path):
            raise said from error
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
