"""Reads facts about models and data sets from the Hub, without downloading weights or data."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, NotASafetensorsRepoError, SafetensorsParsingError

from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import HubDataset, HubModel
from finetune_trainer.hub.client import explain_errors
from finetune_trainer.plan.tensors import Tensor


def observe_hub_model(source: HubModel) -> tuple[Any, list[Tensor]]:
    """Return config.json and the tensors of a repository; fetch only the headers of its weights. Raise FineTuneError."""
    api, field = HfApi(), "spec.model.hub"
    with explain_errors(field, source.name, Reason.MODEL_NOT_FOUND):
        # This request comes first, because its error says whether the repository exists.
        revision = api.model_info(source.name, revision=source.revision).sha
        try:
            config = json.loads(pathlib.Path(api.hf_hub_download(source.name, "config.json", revision=revision)).read_bytes())
            metadata = api.get_safetensors_metadata(source.name, revision=revision)
        except LocalEntryNotFoundError:
            raise FineTuneError(Reason.HUB_UNAVAILABLE, f"{field}: the Hub stopped answering") from None
        except EntryNotFoundError:
            raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{field}: {source.name!r} has no config.json") from None
        except (NotASafetensorsRepoError, SafetensorsParsingError):
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR, f"{field}: {source.name!r} has no weights in the safetensors format"
            ) from None
        except ValueError as error:
            raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{field}: config.json of {source.name!r}: {error}") from None
    files = metadata.files_metadata.values()
    return config, [Tensor(name, item.dtype, tuple(item.shape)) for file in files for name, item in file.tensors.items()]


def count_hub_rows(source: HubDataset, field: str) -> dict[str, int] | None:
    """Return the rows of each split from the data set's card (README.md); None if it lacks them. Raise FineTuneError."""
    api = HfApi()
    with explain_errors(field, source.name, Reason.DATASET_NOT_FOUND):
        revision = api.dataset_info(source.name, revision=source.revision).sha
        try:
            card = metadata_load(api.hf_hub_download(source.name, "README.md", repo_type="dataset", revision=revision))
        except (EntryNotFoundError, ValueError, yaml.YAMLError):
            return None
    configurations = card.get("dataset_info") if isinstance(card, Mapping) else None
    if isinstance(configurations, Mapping):
        configurations = [configurations]
    return _splits(configurations, source.config) if isinstance(configurations, list) else None


def _splits(configurations: list[Any], wanted: str | None) -> dict[str, int] | None:
    """Return the rows of each split of the configuration that would be loaded: the named one, the only one, or ``default``."""
    named = {str(item.get("config_name", "default")): item for item in configurations if isinstance(item, Mapping)}
    chosen = named.get(wanted or "default") or (next(iter(named.values())) if wanted is None and len(named) == 1 else None)
    splits = chosen.get("splits") if chosen else None
    if not isinstance(splits, list):
        return None
    counts = {split.get("name"): split.get("num_examples") for split in splits if isinstance(split, Mapping)}
    found = {str(name): count for name, count in counts.items() if isinstance(count, int)}
    return found or None
