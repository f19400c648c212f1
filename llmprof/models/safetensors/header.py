"""The header of a safetensors file: names, types and shapes, checked and bounded.

Standard library only, so that a model can be judged before any engine, torch or numpy is loaded.
Layout: an 8-byte little-endian length, that many bytes of JSON, then the data
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmprof.errors import ModelError
from llmprof.plaintext import one_line

_WHOLE = 64 << 20
"""Bytes of a file up to which all of it goes into an id."""
_BLOCK = 4096
_PIECE = 1 << 20
MAX_HEADER = 100 << 20
"""The reference implementation's own limit."""
ELEMENT_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; ``shape`` is row-major."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    """Absolute offset in ``file``, bytes."""
    n_bytes: int


def read_tensor_table(file: Path) -> dict[str, StoredTensor]:
    """Name → tensor; every tensor is known to lie inside the file.

    Raises:
        ModelError: unreadable, not safetensors, truncated, or an impossible entry.
    """
    shown = one_line(str(file))
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > MAX_HEADER or 8 + length > size:
                raise ModelError(f"{shown}: not a safetensors file, or cut off in its header")
            raw = stream.read(length)
    except OSError as why:
        raise ModelError(f"{shown}: {why.strerror or why}") from None
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise ModelError(f"{shown}: corrupt safetensors: its header is not JSON") from None
    if not isinstance(header, dict):
        raise ModelError(f"{shown}: corrupt safetensors: its header is not an object")
    header.pop("__metadata__", None)
    data = 8 + length
    return {name: _entry(file, shown, name, entry, data, size) for name, entry in header.items()}


def _entry(file: Path, shown: str, name: str, entry: Any, data: int, size: int) -> StoredTensor:
    label = one_line(name, 80)
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ModelError(f"{shown}: corrupt safetensors: odd entry for tensor {label}") from None
    numbers = (*shape, begin, end)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ModelError(f"{shown}: corrupt safetensors: odd entry for tensor {label}")
    if dtype not in ELEMENT_BYTES:
        raise ModelError(f"{shown}: tensor {label} has the unknown type {one_line(dtype, 20)}")
    if end - begin != math.prod(shape) * ELEMENT_BYTES[dtype]:
        raise ModelError(
            f"{shown}: corrupt safetensors: tensor {label} takes {end - begin} bytes, its shape"
            f" {list(shape)} of {dtype} says {math.prod(shape) * ELEMENT_BYTES[dtype]}"
        )
    if data + end > size:
        raise ModelError(
            f"{shown}: truncated: {size} bytes, tensor {label} ends at {data + end};"
            " copy or download it again"
        )
    return StoredTensor(dtype, shape, file, data + begin, end - begin)


def sampled_id(files: Sequence[Path], settings: str) -> str:
    """SHA-256 over ``settings``, the files' names and sizes, and their contents: all of small
    files, of large ones 64 blocks of 4 KiB spread over each and one from the middle of each tensor,
    so that one layer that was exchanged shows.

    Raises:
        ModelError: a file is no safetensors.
    """
    digest = hashlib.sha256(settings.encode("utf-8", "replace"))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode("utf-8", "replace"))
        places: list[int] = []
        if size > _WHOLE:
            table = read_tensor_table(file).values()
            places = [(size - _BLOCK) * i // 63 for i in range(64)]
            places += [tensor.start + tensor.n_bytes // 2 for tensor in table]
        with file.open("rb") as stream:
            if not places:
                digest.update(stream.read())
            for place in sorted(places):
                stream.seek(place)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def only(tensor: StoredTensor, byte: int) -> bool:
    """Are all its bytes this one?"""
    return all(data.count(byte) == len(data) for data in _pieces(tensor))


def same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(_pieces(one), _pieces(other), strict=True))


def _pieces(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for at in range(0, tensor.n_bytes, _PIECE):
            yield file.read(min(_PIECE, tensor.n_bytes - at))
