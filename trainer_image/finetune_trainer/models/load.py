"""Loads tokenizer, configuration and model of a task from a repository or a directory, and saves them."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import safetensors
import torch
import transformers
from transformers.utils.peft_utils import find_adapter_config_file

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_trainer.hub.client import HUB_ERRORS, explain_load_error
from finetune_trainer.models import adapters, embeddings
from finetune_trainer.runtime import device
from finetune_trainer.runtime.disk import is_caused_by_full_disk
from finetune_trainer.tasks.base import Task
from finetune_trainer.tasks.generation import eos_token_ids

log = logging.getLogger(__name__)

_SHARD_SIZE = "5GB"
# Errors that transformers and the Hub's client raise for files that are missing, broken or of another kind.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, safetensors.SafetensorError)

transformers.logging.disable_progress_bar()


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Location of a model: a repository and a commit, or a directory.

    field: spec field, option or path, for errors. trust_remote_code: whether Python code of the repository may run.
    """

    name_or_path: str
    revision: str | None
    field: str
    trust_remote_code: bool = False

    @property
    def from_pretrained_kwargs(self) -> dict[str, Any]:
        """Arguments for every ``from_pretrained``."""
        revision = {"revision": self.revision} if self.revision else {}
        return {**revision, "trust_remote_code": self.trust_remote_code}


def load_tokenizer(location: ModelLocation) -> Any:
    """Load the tokenizer, with a pad token and padding on the right. Raise FineTuneError if there is none."""
    with _explain_errors(location, "no tokenizer can be read"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location.name_or_path, **location.from_pretrained_kwargs)
    if tokenizer.pad_token is None:  # some decoders have none; padding is masked, so any token works
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
    """Load the model's configuration. Raise FineTuneError if there is none."""
    with _explain_errors(location, "no model can be made of it"):
        return transformers.AutoConfig.from_pretrained(location.name_or_path, **location.from_pretrained_kwargs)


def load_model(task: Task, location: ModelLocation, spec: FineTuneJobSpec) -> Any:
    """Load the model of a task for training, with adapters. It is on the CPU, unless its weights are quantized.

    New layers get random weights, so the seed must be set before. Raises FineTuneError that names the field to change.
    """
    source = spec.model
    with _explain_errors(location, f"no model for {spec.task} can be made of it"):
        model, new_modules = _load(task, location, source)
    task.missing_layers = _missing_layers(task, model.base_model_prefix, new_modules)
    if spec.training.activation_checkpointing and not model.supports_gradient_checkpointing:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.training.activationCheckpointing: {type(model).__name__} does not support it; leave it out",
        )
    if source.lora:
        model = adapters.apply_lora(model, task, source.lora, new_modules)
    if spec.training.activation_checkpointing:
        enable_activation_checkpointing(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("%s: %.1f million parameters, %.1f trained", type(model).__name__, model.num_parameters() / 1e6, trained / 1e6)
    return model


def _load(task: Task, location: ModelLocation, source: ModelSource) -> tuple[Any, list[str]]:
    """Load the model, and return it with the names of missing modules, which have random weights."""
    base = _base_location(location)
    if base is not location and source.quantization != "None":
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.model.quantization: {location.field} holds adapters, which can't be added to quantized weights; write "
            "None, or start from a merged model",
        )
    dropout = {} if task.uses_dropout else _dropout_settings(task.config)
    model, loading = getattr(transformers, task.auto_model).from_pretrained(
        base.name_or_path,
        **base.from_pretrained_kwargs,
        **task.model_kwargs(),
        **dict.fromkeys(dropout, 0.0),
        **_quantization(source),
        dtype=weights_dtype(source),
        use_safetensors=True,  # the pickle format can run code
        output_loading_info=True,
    )
    model.saved_settings = dropout
    _match_tokenizer(model, task.tokenizer)
    if base is not location:
        model = adapters.attach_and_merge(model, location.name_or_path, location.revision)
        # New adapters belong to the merged model, not to its base model.
        model.name_or_path, model.config._commit_hash = location.name_or_path, location.revision
    keys = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    return model, sorted({key.rpartition(".")[0] for key in keys})


def _missing_layers(task: Task, base: str, new_modules: Sequence[str]) -> list[str]:
    """Return the new modules that should not be new. base: name of the model without its head.

    The head of a classifier is new. Many encoders were trained without the pooler in front of it.
    """
    if not task.has_new_head:
        return list(new_modules)
    return [name for name in new_modules if name.startswith(f"{base}.") and "pooler" not in name]


def _base_location(location: ModelLocation) -> ModelLocation:
    """Return the location of the base model if the location holds adapters (of an earlier job, or of the Hub), else itself."""
    found = find_adapter_config_file(location.name_or_path, revision=location.revision)
    if found is None:
        return location
    config = json.loads(pathlib.Path(found).read_text())
    name = config.get("base_model_name_or_path") or ""
    if not name or (pathlib.Path(name).is_absolute() and not pathlib.Path(name).is_dir()):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{location.field}: it holds adapters alone, and the model that they belong to "
            f"{f'is not here: there is no directory {name}' if name else 'is not named'}; merge them into it, and write the "
            "directory of the merged model",
        )
    return dataclasses.replace(location, name_or_path=name, revision=config.get("revision"))


def enable_activation_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    if adapters.is_adapter(model):
        model.enable_input_require_grads()  # else the output of frozen embeddings requires no gradient


def weights_dtype(source: ModelSource) -> torch.dtype:
    """Return the type of the weights in memory. Mixed precision needs trained weights in fp32; frozen weights may be bf16."""
    if source.dtype == "Auto":
        small = source.lora and device.supports_bf16()
        return torch.bfloat16 if small else torch.float32
    return torch.bfloat16 if source.dtype == "bfloat16" else torch.float32


def merge_adapters(model: Any) -> Any:
    """Merge the adapters into the weights; ``model`` is not usable afterwards. A model without adapters is returned unchanged."""
    return adapters.merge_adapters(model)


def save_model(model: Any, tokenizer: Any, directory: pathlib.Path) -> None:
    """Write model (or adapter), configuration and tokenizer: sharded safetensors, and no local path."""
    with _saved_configuration(model):
        if adapters.is_adapter(model):
            adapters.save(model, directory)
        else:
            model.save_pretrained(directory, max_shard_size=_SHARD_SIZE)
    tokenizer.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):  # safetensors makes them unreadable for other users and jobs
        weights.chmod((directory / "config.json").stat().st_mode)


def _quantization(source: ModelSource) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for ``spec.model.quantization``."""
    if source.quantization == "None":
        return {}
    if not device.has_gpu():
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.model.quantization: {source.quantization} needs a CUDA GPU, and there is none here; write None, or ask for "
            "one with spec.distributed.gpusPerNode",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.model.quantization: {source.quantization} needs bitsandbytes, which is not installed here; install it, or "
            "write None",
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


def _dropout_settings(config: Any) -> dict[str, float]:
    """Return the settings for dropout in the model's configuration that are not zero.

    To turn dropout off, they must be zero before the model is built. OPT, BLOOM and others have no layers of type Dropout.
    """
    return {name: value for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float) and value}


def _match_tokenizer(model: Any, tokenizer: Any) -> None:
    """Match the model to the tokenizer: embedding rows for all tokens, the same pad token. Disable the KV cache for training."""
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = eos_token_ids(model, tokenizer)
    added = embeddings.grow(model, len(tokenizer))
    if added:
        log.info("added %d tokens to a vocabulary of %d", added, len(tokenizer) - added)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
        model.saved_settings["use_cache"] = True


@contextlib.contextmanager
def _saved_configuration(model: Any) -> Iterator[None]:
    """Give the model the configuration that is saved: without the settings that hold for the training only."""
    config, saved = model.config, getattr(model, "saved_settings", {})
    training = {name: getattr(config, name) for name in saved}
    config.update(saved)
    try:
        yield
    finally:
        config.update(training)


@contextlib.contextmanager
def _explain_errors(location: ModelLocation, problem: str) -> Iterator[None]:
    try:
        yield
    except FineTuneError:
        raise
    except (*_LOADING_ERRORS, *HUB_ERRORS) as error:
        if is_caused_by_full_disk(error):
            raise
        if explained := explain_load_error(error, location.field, location.name_or_path):
            raise explained from error
        if "trust_remote_code" in str(error) and not location.trust_remote_code:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"{location.field}: the model comes with Python code of its own, which is not run unless you write "
                f"{'spec.model.trustRemoteCode: true' if location.field.startswith('spec.') else '--trust-remote-code'}; choose "
                "another model if you do not trust its repository",
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"{location.field}: {problem}: {reason[:400]} (config.json, tokenizer and safetensors weights are needed)",
        ) from error
