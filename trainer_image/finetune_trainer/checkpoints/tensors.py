"""The files of a checkpoint: tensors as safetensors, everything else as JSON. Nothing that is read is run, as a pickle is."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import safetensors.torch
import torch

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_CHUNK_BYTES = 4 << 20
_SYNC_BYTES = 256 << 20

Tensors = dict[str, torch.Tensor]


def flatten(state: Any, name: str) -> tuple[Any, Tensors]:
    """A nested state (dicts, lists, tuples, numbers, words, tensors) → what JSON can hold of it, and its tensors by name.

    Numbers as keys and tuples come back as what they were. Raises TypeError for anything else.
    """
    tensors: Tensors = {}

    def visit(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            key = f"{name}.{len(tensors)}"
            tensors[key] = value
            return {"tensor": key}
        if isinstance(value, Mapping):
            return {"items": [[visit(key), visit(entry)] for key, entry in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [visit(entry) for entry in value]}
        if isinstance(value, list):
            return [visit(entry) for entry in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{type(value).__name__} in the state of {name} can't be kept in a checkpoint")

    return visit(state), tensors


def restore(skeleton: Any, tensors: Tensors) -> Any:
    """The state that flatten() was given."""
    if isinstance(skeleton, list):
        return [restore(entry, tensors) for entry in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    [(kind, content)] = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(restore(entry, tensors) for entry in content)
    return {restore(key, tensors): restore(entry, tensors) for key, entry in content}


def as_safetensors(tensors: Tensors) -> Iterator[memoryview]:
    """The bytes of a safetensors file of tensors on the CPU, a few MiB at a time and without copying them.

    The library writes a file in one go, which could be neither hashed on the way nor slowed down.
    """
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for offset in range(0, len(data), _CHUNK_BYTES):
            yield data[offset : offset + _CHUNK_BYTES]


def load(file: pathlib.Path) -> Tensors:
    """The tensors of a safetensors file, on the CPU."""
    return safetensors.torch.load_file(file)


def write(path: pathlib.Path, chunks: Iterator[memoryview], told: Callable[[memoryview], None]) -> None:
    """Write a file. told: called with each chunk when it is written.

    Little of it is ever on its way to the disk: all of it at once would be waited for without a sign of life.
    """
    with path.open("wb", buffering=0) as file:
        waiting = 0
        for chunk in chunks:
            rest = chunk
            while rest:
                rest = rest[file.write(rest) :]
            waiting += len(chunk)
            if waiting >= _SYNC_BYTES:
                os.fsync(file.fileno())
                waiting = 0
            told(chunk)
