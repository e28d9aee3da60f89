"""Reads names, types and shapes of a model's tensors. It reads only the headers of the safetensors files."""

import dataclasses
import json
import math
import pathlib
import re
import struct
from collections.abc import Iterator
from typing import Any

from finetune_api.reasons import FineTuneError, Reason

_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
_EMBEDDING = re.compile(r"embed|(^|\.)w[tp]e\.")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor in the header of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether the tensor is the matrix of a linear layer."""
        return len(self.shape) == 2 and not _EMBEDDING.search(self.name)


def observe_tensors(directory: pathlib.Path) -> Iterator[Tensor]:
    """Yield every tensor in the weight files of a model's directory. Raise FineTuneError."""
    for file in _weight_files(directory):
        try:
            header = _read_header(file)
        except (OSError, ValueError, struct.error) as error:
            raise FineTuneError(
                Reason.CONFIGURATION_ERROR, f"spec.model.claim: {file} is not a safetensors file: {error}"
            ) from None
        for name, entry in header.items():
            if name != "__metadata__":
                yield Tensor(name, entry["dtype"], tuple(entry["shape"]))


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """Return the weight files that transformers would load: one file, or the files that the index names."""
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
    """Return the JSON header of a file, which follows its own length in eight bytes."""
    with file.open("rb") as stream:
        [length] = struct.unpack("<Q", stream.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header
