"""Low-rank adapters by peft: put into a model, saved alone, or merged into it. peft is imported only where it is asked for."""

import contextlib
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import LoRA
from finetune_trainer.models.embeddings import grow
from finetune_trainer.tasks import chat
from finetune_trainer.tasks.base import Task

ALL_LINEAR = "all-linear"
# What an adapter names as its base where that came from a directory: a machine's path would say nothing elsewhere.
LOCAL_BASE = "local-model"


def is_adapter(model: Any) -> bool:
    """Whether the model carries adapters."""
    peft = sys.modules.get("peft")  # not imported: no adapters anywhere
    return peft is not None and isinstance(model, peft.PeftModel)


def apply_lora(model: Any, task: Task, lora: LoRA, fresh: Sequence[str] = ()) -> Any:
    """The model with adapters in place and all else frozen, but for what is trained whole.

    fresh: modules whose weights were drawn at random, trained and saved whole, as are ``lora.modules_to_save``; the embeddings
    of chat markers that the model never saw are trained alone. Raises FineTuneError for names that no module has.
    """
    import peft

    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = _targets(model, lora, fresh)
    config = peft.LoraConfig(
        task_type=task.peft_task(),
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # a fraction is as good, says its arithmetic
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=_whole(model, task, lora, fresh),
        trainable_token_indices=_marker_rows(model, task, lora),
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )
    with _known_warnings():
        adapted = peft.get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, peft.utils.ModulesToSaveWrapper):
            _train_in_fp32(module)
    return adapted


def merged(model: Any) -> Any:
    """The full model, the adapters added to its weights; the model itself is used up. One without adapters is returned as is."""
    if not is_adapter(model):
        return model
    if getattr(model.get_base_model(), "is_quantized", False):
        return merged_anew(model, torch.bfloat16)
    return model.merge_and_unload(safe_merge=True)


def merged_anew(model: Any, dtype: torch.dtype) -> Any:
    """The same from the base model, loaded once more: 4 or 8 bits would not hold what the adapters add."""
    quantized = model.get_base_model()
    revision = getattr(quantized.config, "_commit_hash", None)
    base = type(quantized).from_pretrained(
        quantized.name_or_path,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # a fresh head, which the adapters bring
        num_labels=quantized.config.num_labels,
        **({"revision": revision} if revision else {}),
    )
    grow(base, quantized.get_input_embeddings().weight.shape[0])
    base.config.update({name: getattr(quantized.config, name, None) for name in ("id2label", "label2id", "pad_token_id")})
    base.generation_config = quantized.generation_config
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, save_embedding_layers=False)
        return merge_into(base, directory, None)


def merge_into(model: Any, name_or_path: str, revision: str | None) -> Any:
    """The model with adapters of a directory or a repository added to its weights."""
    return merged(attach(model, name_or_path, revision))


def attach(model: Any, name_or_path: str, revision: str | None = None) -> Any:
    """The model with adapters of a directory or a repository in place."""
    import peft

    with _known_warnings():
        return peft.PeftModel.from_pretrained(model, name_or_path, revision=revision)


def save(model: Any, directory: pathlib.Path) -> None:
    """Write the adapters and the configuration of the base model, which knows the classes; no README, no machine's path."""
    for config in model.peft_config.values():
        local = pathlib.Path(config.base_model_name_or_path or "/").is_dir()
        config.base_model_name_or_path = LOCAL_BASE if local else config.base_model_name_or_path
        config.revision = getattr(model.config, "_commit_hash", None)
    # Embeddings that are trained are saved as what they are; peft would ask the Hub whether to save all of them.
    model.save_pretrained(directory, save_embedding_layers=False)
    model.config.architectures = [type(model.get_base_model()).__name__]  # of the model with its head, not of what it came from
    model.config.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)


def _linear_names(model: Any) -> list[str]:
    """Names of all linear layers; quantized ones are subclasses, GPT-2's are Conv1D."""
    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]


def _targets(model: Any, lora: LoRA, fresh: Sequence[str]) -> list[str]:
    """Full names of the modules that get adapters."""
    output = model.get_output_embeddings()
    heads = {name for name, module in model.named_modules() if module is output}
    linear = [name for name in _linear_names(model) if name not in heads and not _below(name, fresh)]
    found: set[str] = set()
    for target in lora.target_modules:
        named = linear if target == ALL_LINEAR else _ending(model, target)
        if not named:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.model.lora.targetModules: the model has no module named {target!r}; write {ALL_LINEAR}, or some of: "
                + ", ".join(sorted({name.rpartition(".")[2] for name in linear})),
            )
        found.update(named)
    return sorted(found)


def _whole(model: Any, task: Task, lora: LoRA, fresh: Sequence[str]) -> list[str] | None:
    """Names of the modules that are trained whole; the outermost of each, as they can't be nested."""
    names = set(fresh)
    for asked in lora.modules_to_save or ():
        found = _ending(model, asked)
        if not found:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.model.lora.modulesToSave: the model has no module named {asked!r}; write one of its modules, such as: "
                + ", ".join(sorted({name.rpartition(".")[2] for name in _linear_names(model)})),
            )
        names.update(found)
    if task.peft_task() in ("SEQ_CLS", "TOKEN_CLS"):  # peft adds these by itself
        names = {name for name in names if not any(part in ("classifier", "score") for part in name.split("."))}
    return sorted(name for name in names if not _below(name, names - {name})) or None


def _marker_rows(model: Any, task: Task, lora: LoRA) -> dict[str, list[int]] | None:
    """Rows of the embeddings that are trained although all others are frozen: those of our chat template's markers."""
    rows = chat.marker_ids(task.tokenizer)
    layers = {id(layer.weight): layer for layer in (model.get_output_embeddings(), model.get_input_embeddings()) if layer}
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers.values())]
    whole = tuple(lora.modules_to_save or ())
    return {name: rows for name in names if not name.endswith(whole or "\0")} if rows else None


def _ending(model: Any, name: str) -> list[str]:
    return [full for full, _ in model.named_modules() if full == name or full.endswith("." + name)]


def _below(name: str, modules: Sequence[str] | set[str]) -> bool:
    """Whether the name is one of the modules or inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 asks for gradient checkpointing by the name that it had before transformers 5.23.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _train_in_fp32(wrapper: Any) -> None:
    """Weights that are trained are fp32 even where the frozen ones are not, and their inputs with them outside of autocast."""

    def widen(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.float() if torch.is_tensor(value) and value.is_floating_point() else value for value in inputs)

    for module in wrapper.modules_to_save.values():
        module.float()
        module.register_forward_pre_hook(widen)
