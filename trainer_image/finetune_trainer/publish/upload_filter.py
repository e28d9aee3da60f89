"""Decides which files of a model's directory may be uploaded, and removes private strings from them.

Only files that match the names below are uploaded: no optimizer state, no training_args.bin (it holds a token), no checkpoints.
In texts, tokens, the host name and local paths are replaced. The files on the disk do not change.
"""

import fnmatch
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_api.reasons import FineTuneError, Reason
from finetune_api.spec import FineTuneJobSpec

log = logging.getLogger(__name__)

README = "README.md"
# Placeholder for the repository in a model card that was written before the repository was known.
UNNAMED_REPOSITORY = "owner/name"

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors", "adapter_model-*-of-*.safetensors")
_INDEXES = ("model.safetensors.index.json", "adapter_model.safetensors.index.json")
# Texts in which strings may be replaced. Vocabularies are not among them, because a replacement would break them.
_TEXTS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    README,
)
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "*.bpe.model", "spiece.model")
_CODE = "*.py"  # code of a model with custom code, which does not work without it
_CONFIG = "config.json"

REMOVED = "[removed]"
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$")
_MIN_SECRET_LENGTH = 16  # characters; a shorter value may be an ordinary word, except in the variable of the Hub's token
_PATH_FIELDS = re.compile(r"(name_or_path|_file|_dir|_path)$")


def shareable_files(directory: pathlib.Path, repository: str) -> dict[str, pathlib.Path | bytes]:
    """Return name in the repository → the file, or its changed text.

    Raises FineTuneError if the model in the directory is not complete, or if a file can't be read.
    """
    try:
        found = {path.name: path for path in sorted(directory.iterdir()) if path.is_file() and _allowed(path.name, directory)}
        _check_complete(directory, found)
        private = private_strings(directory, os.environ, os.uname().nodename)
        shared: dict[str, pathlib.Path | bytes] = {}
        for name, path in found.items():
            shared[name] = path
            if name in _TEXTS:
                before = path.read_text()
                after = redact(name, before, private)
                if name == README:
                    after = after.replace(UNNAMED_REPOSITORY, repository)
                shared[name] = path if after == before else after.encode()
            elif not _matches(name, _WEIGHTS):
                _refuse_secrets(path, private)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FineTuneError(Reason.HUB_PUSH_FAILED, f"{getattr(error, 'filename', None) or directory}: {reason}") from None
    return shared


def is_weights(name: str) -> bool:
    """Return whether a file in a repository's root holds weights, or an index or configuration of weights."""
    return _matches(name, (*_WEIGHTS, *_INDEXES, "adapter_config.json", "pytorch_model*.bin"))


def _allowed(name: str, directory: pathlib.Path) -> bool:
    if name.endswith(".py"):
        return _has_own_code(directory)
    return _matches(name, (*_WEIGHTS, *_INDEXES, *_TEXTS, *_VOCABULARIES))


def _has_own_code(directory: pathlib.Path) -> bool:
    config = directory / _CONFIG
    return config.is_file() and "auto_map" in json.loads(config.read_text())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_complete(directory: pathlib.Path, found: Mapping[str, pathlib.Path]) -> None:
    needed = {"adapter_config.json"} if "adapter_config.json" in found else {_CONFIG}
    for index in _INDEXES:
        if index in found:
            needed |= set(json.loads(found[index].read_text())["weight_map"].values())
    missing = sorted(needed - set(found))
    if not any(_matches(name, _WEIGHTS) for name in found):
        missing.append("safetensors")
    if missing:
        raise FineTuneError(
            Reason.HUB_PUSH_FAILED, f"{directory} holds no complete finished model: {', '.join(missing)} is missing"
        )


def shareable_spec(spec: FineTuneJobSpec) -> dict[str, Any]:
    """Return the spec as in its file, without values of environment variables, because each of them may be a key."""
    wire = spec.to_wire()
    for variable in wire.get("pod", {}).get("env") or ():
        variable.pop("value", None)
    return wire


def private_strings(directory: pathlib.Path, environ: Mapping[str, str], host: str) -> Sequence[str]:
    """Return strings that no uploaded file may contain, the longest first: tokens, the host name and local paths.

    A host name that looks like an ordinary word is left out, because it can't be told from that word.
    """
    home = pathlib.Path(environ.get("HOME", "/"))  # not Path.home(), which fails for a user without a name
    own = (directory, directory.resolve(), *directory.resolve().parents, home)
    paths = {str(path) for path in own if path.is_absolute() and len(path.parts) > 2}
    paths |= {names.CLAIMS_DIR, names.OUTPUT_DIR, names.CACHE_DIR}
    hosts = {host} if len(host) >= 6 and re.search(r"[\d.-]", host) else set()
    return sorted({*secret_values(environ), *paths, *hosts}, key=len, reverse=True)


def secret_values(environ: Mapping[str, str]) -> set[str]:
    """Return the values of variables whose names indicate secrets."""
    token = environ.get(names.ENV_HUB_TOKEN, "")
    secrets = {value for name, value in environ.items() if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_LENGTH}
    return secrets | ({token} if token else set())


def redact(name: str, text: str, private: Iterable[str]) -> str:
    """Replace private strings in the text of a file. In JSON files, set fields with an absolute path to null."""
    cleaned = text
    if name.endswith(".json"):
        content = json.loads(text)
        neutral = _without_paths(content)
        cleaned = text if neutral == content else json.dumps(neutral, indent=2, ensure_ascii=False) + "\n"
    for word in private:
        if word in cleaned:
            log.warning("%s: a string that is private to this machine was removed before the upload", name)
            cleaned = cleaned.replace(word, REMOVED)
    return cleaned


def _without_paths(value: Any, field: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, field) for item in value]
    return None if isinstance(value, str) and _PATH_FIELDS.search(field) and pathlib.PurePath(value).is_absolute() else value


def _refuse_secrets(path: pathlib.Path, private: Iterable[str]) -> None:
    """Raise FineTuneError for a private string in a vocabulary or code, because it can't be replaced there."""
    content = path.read_bytes()
    for word in private:
        if word.encode() in content:
            raise FineTuneError(Reason.HUB_PUSH_FAILED, f"{path.name} holds a token or a local path: remove it first")
