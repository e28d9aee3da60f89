"""The tensors of a model's weights, read from the headers of its safetensors files alone."""

import dataclasses
import json
import math
import pathlib
import re
import struct
from collections.abc import Iterator
from typing import Any

from finetune_api.reasons import FineTuneError, Reason

_LARGEST_HEADER_BYTES = 100_000_000  # as safetensors itself
_EMBEDDING = re.compile(r"embed|(^|\.)w[tp]e\.")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file's header."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def linear(self) -> bool:
        """Whether it is the matrix of a linear layer."""
        return len(self.shape) == 2 and not _EMBEDDING.search(self.name)


def observe_tensors(directory: pathlib.Path) -> Iterator[Tensor]:
    """Name, type and shape of every tensor of a model's directory, from the headers of its files. Raises FineTuneError."""
    for file in _weight_files(directory):
        try:
            header = _read_header(file)
        except (OSError, ValueError, struct.error) as error:
            raise FineTuneError(Reason.CONFIGURATION_ERROR, f"spec.model.claim: {file} is no safetensors file: {error}") from None
        for name, entry in header.items():
            if name != "__metadata__":
                yield Tensor(name, entry["dtype"], tuple(entry["shape"]))


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """As transformers looks for them: one file, or those that the index names."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        raise FineTuneError(
            Reason.CONFIGURATION_ERROR,
            f"spec.model.claim: {directory} has no weights in the safetensors format (model.safetensors is missing)",
        ) from None
    return [directory / pathlib.Path(name).name for name in sorted(names)]


def _read_header(file: pathlib.Path) -> dict[str, Any]:
    """The JSON at the beginning of a file, behind its length as eight bytes."""
    with file.open("rb") as stream:
        [length] = struct.unpack("<Q", stream.read(8))
        if length > _LARGEST_HEADER_BYTES:
            raise ValueError("its header is too long")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header
