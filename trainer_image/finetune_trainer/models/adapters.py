"""Low-rank adapters with peft: adds them to a model, saves them alone, or merges them. Imports peft only if it is used."""

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


def is_adapter(model: Any) -> bool:
    """Return whether the model has adapters."""
    peft = sys.modules.get("peft")  # if peft is not imported, no model has adapters
    return peft is not None and isinstance(model, peft.PeftModel)


def apply_lora(model: Any, task: Task, lora: LoRA, new_modules: Sequence[str] = ()) -> Any:
    """Return the model with adapters. All other weights are frozen, except modules that are trained as a whole.

    new_modules: modules with random weights. They are trained and saved as a whole, as are ``lora.modules_to_save``. Of the
    embeddings, only the rows of new chat markers are trained. Raises FineTuneError for names that no module has.
    """
    import peft

    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = _target_modules(model, lora, new_modules)
    config = peft.LoraConfig(
        task_type=task.peft_task_type(),
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # a fraction works too
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=_modules_to_save(model, task, lora, new_modules),
        trainable_token_indices=_trainable_token_indices(model, task, lora),
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )
    with _ignore_known_warnings():
        adapted = peft.get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, peft.utils.ModulesToSaveWrapper):
            _keep_in_fp32(module)
    return adapted


def merge_adapters(model: Any) -> Any:
    """Merge the adapters into the weights; ``model`` is not usable afterwards. A model without adapters is returned unchanged."""
    if not is_adapter(model):
        return model
    if getattr(model.get_base_model(), "is_quantized", False):
        return merge_into_reloaded_base(model, torch.bfloat16)
    return model.merge_and_unload(safe_merge=True)


def merge_into_reloaded_base(model: Any, dtype: torch.dtype) -> Any:
    """Load the base model again and merge the adapters into it, because 4 or 8 bits are too imprecise for the sum."""
    quantized = model.get_base_model()
    revision = getattr(quantized.config, "_commit_hash", None)
    base = type(quantized).from_pretrained(
        quantized.name_or_path,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # the adapters contain the new head
        num_labels=quantized.config.num_labels,
        **({"revision": revision} if revision else {}),
    )
    grow(base, quantized.get_input_embeddings().weight.shape[0])
    base.config.update({name: getattr(quantized.config, name, None) for name in ("id2label", "label2id", "pad_token_id")})
    base.generation_config = quantized.generation_config
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, save_embedding_layers=False)
        return attach_and_merge(base, directory, None)


def attach_and_merge(model: Any, name_or_path: str, revision: str | None) -> Any:
    """Load adapters from a directory or a repository, and merge them into the model."""
    return merge_adapters(attach(model, name_or_path, revision))


def attach(model: Any, name_or_path: str, revision: str | None = None) -> Any:
    """Load adapters from a directory or a repository, and add them to the model."""
    import peft

    with _ignore_known_warnings():
        return peft.PeftModel.from_pretrained(model, name_or_path, revision=revision)


def save(model: Any, directory: pathlib.Path) -> None:
    """Write the adapters, which name their base model, and its configuration, which names the classes. Write no README.

    A base model from a claim is named by its absolute path. A push removes the path (publish/upload_filter.py).
    """
    for config in model.peft_config.values():
        named = config.base_model_name_or_path or model.get_base_model().name_or_path
        config.base_model_name_or_path = str(pathlib.Path(named).resolve()) if pathlib.Path(named).is_dir() else named
        config.revision = getattr(model.config, "_commit_hash", None)
    # peft saves trained embeddings in any case. By default, it would ask the Hub whether to save all embeddings.
    model.save_pretrained(directory, save_embedding_layers=False)
    model.config.architectures = [type(model.get_base_model()).__name__]  # the model with its head, not its source
    model.config.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)


def _linear_names(model: Any) -> list[str]:
    """Return the names of all linear layers. Quantized layers are subclasses, and those of GPT-2 are Conv1D."""
    return [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]


def _target_modules(model: Any, lora: LoRA, new_modules: Sequence[str]) -> list[str]:
    """Return the full names of the modules that get adapters."""
    output = model.get_output_embeddings()
    heads = {name for name, module in model.named_modules() if module is output}
    linear = [name for name in _linear_names(model) if name not in heads and not _is_inside(name, new_modules)]
    found: set[str] = set()
    for target in lora.target_modules:
        named = linear if target == ALL_LINEAR else _modules_named(model, target)
        if not named:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.model.lora.targetModules: the model has no module named {target!r}; write {ALL_LINEAR}, or some of: "
                + ", ".join(sorted({name.rpartition(".")[2] for name in linear})),
            )
        found.update(named)
    return sorted(found)


def _modules_to_save(model: Any, task: Task, lora: LoRA, new_modules: Sequence[str]) -> list[str] | None:
    """Return the names of the modules that are trained as a whole. Only the outermost ones, because they can't be nested."""
    names = set(new_modules)
    for asked in lora.modules_to_save or ():
        found = _modules_named(model, asked)
        if not found:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR,
                f"spec.model.lora.modulesToSave: the model has no module named {asked!r}; write one of its modules, such as: "
                + ", ".join(sorted({name.rpartition(".")[2] for name in _linear_names(model)})),
            )
        names.update(found)
    if task.peft_task_type() in ("SEQ_CLS", "TOKEN_CLS"):  # peft adds these itself
        names = {name for name in names if not any(part in ("classifier", "score") for part in name.split("."))}
    return sorted(name for name in names if not _is_inside(name, names - {name})) or None


def _trainable_token_indices(model: Any, task: Task, lora: LoRA) -> dict[str, list[int]] | None:
    """Return the embedding rows that are trained while all others are frozen: those of the markers of chatml."""
    rows = chat.marker_ids(task.tokenizer)
    layers = {id(layer.weight): layer for layer in (model.get_output_embeddings(), model.get_input_embeddings()) if layer}
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers.values())]
    whole = tuple(lora.modules_to_save or ())
    return {name: rows for name in names if not name.endswith(whole or "\0")} if rows else None


def _modules_named(model: Any, name: str) -> list[str]:
    return [full for full, _ in model.named_modules() if full == name or full.endswith("." + name)]


def _is_inside(name: str, modules: Sequence[str] | set[str]) -> bool:
    """Return whether the name is one of the modules or inside one of them."""
    return any(name == module or name.startswith(module + ".") for module in modules)


@contextlib.contextmanager
def _ignore_known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 uses the name that gradient checkpointing had before transformers 5.23.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _keep_in_fp32(wrapper: Any) -> None:
    """Keep trained weights in fp32 even if the frozen weights are not, and convert their inputs, for use outside of autocast."""

    def widen(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.float() if torch.is_tensor(value) and value.is_floating_point() else value for value in inputs)

    for module in wrapper.modules_to_save.values():
        module.float()
        module.register_forward_pre_hook(widen)
