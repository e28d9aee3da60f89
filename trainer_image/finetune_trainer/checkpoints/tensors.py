"""The files of a checkpoint: tensors as safetensors, everything else as JSON. Reading them runs no code, unlike a pickle."""

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
    """Split a nested state (dicts, lists, tuples, numbers, strings, tensors) into a skeleton for JSON, and its tensors by name.

    restore() returns tuples, and keys that are numbers, unchanged. Raises TypeError for other types.
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
    """Return the state that flatten() got."""
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
    """Yield the bytes of a safetensors file for tensors on the CPU, a few MiB at a time and without a copy.

    The library writes a file in one call, which can be neither hashed meanwhile nor throttled.
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
    """Return the tensors of a safetensors file, on the CPU."""
    return safetensors.torch.load_file(file)


def write(path: pathlib.Path, chunks: Iterator[memoryview], on_chunk: Callable[[memoryview], None]) -> None:
    """Write a file. on_chunk: called with each chunk after it is written.

    The file is synced every few chunks, because one sync of the whole file would take long without a heartbeat.
    """
    with path.open("wb", buffering=0) as file:
        unsynced = 0
        for chunk in chunks:
            rest = chunk
            while rest:
                rest = rest[file.write(rest) :]
            unsynced += len(chunk)
            if unsynced >= _SYNC_BYTES:
                os.fsync(file.fileno())
                unsynced = 0
            on_chunk(chunk)
