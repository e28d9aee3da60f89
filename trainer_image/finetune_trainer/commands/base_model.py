"""Finds the base model of an adapter: named by the user, in a claim, on the Hub, or in the directory that the adapter names."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import Claim
from finetune_trainer.commands.arguments import find_model
from finetune_trainer.runtime.command_line import read_run_field


class BaseModel(NamedTuple):
    """Repository and commit, or a directory. field: what the user can change, for errors."""

    name_or_path: str
    revision: str | None
    field: str


def find_base_model(
    directory: pathlib.Path, adapter: Mapping[str, Any], given: str | None, claims: Mapping[str, str]
) -> BaseModel:
    """Return the base model of the adapter in a directory. Raise FineTuneError that says how to name it.

    adapter: content of adapter_config.json. given: repository or directory from the command line. claims: claim name → directory,
    from the command line.
    """
    if given:
        return BaseModel(given, None, "--base")
    named = adapter.get("base_model_name_or_path")
    if named and not pathlib.PurePath(named).is_absolute():
        return BaseModel(str(named), adapter.get("revision"), str(directory))
    claim = _claim_of(directory, named)
    if claim is not None and claim.claim_name in claims:
        return BaseModel(str(find_model(claim, claims, "--claim")), None, "--claim")
    if named and pathlib.Path(named).is_dir():
        return BaseModel(str(named), None, str(directory))
    base = f"an adapter of the model {named}, which is not on this machine" if named else "an adapter that names no base model"
    remedy = f"add --claim {claim.claim_name}=DIR, or --base DIR" if claim else "add --base with its directory or repository"
    raise FineTuneError(Reason.CONFIGURATION_ERROR, f"{directory}: holds {base}; {remedy}")


def _claim_of(directory: pathlib.Path, named: str | None) -> Claim | None:
    """Return the claim that held the base model: that of the run, or that of a pod's path if the model alone was downloaded."""
    source = (read_run_field(directory, "spec") or {}).get("model", {}).get("claim")
    if source:
        return Claim.model_validate(source)
    mounts = pathlib.PurePath(names.CLAIMS_DIR)
    if named is None or not pathlib.PurePath(named).is_relative_to(mounts):
        return None
    name, *path = pathlib.PurePath(named).relative_to(mounts).parts
    return Claim(claim_name=name, path="/".join(path) or None)
