"""The header of a GGUF file: metadata and tensor table, checked and bounded.

Standard library only, so that the parent process can look at a model without numpy. Layout: the
GGUF specification of ggml (docs/gguf.md), versions 2 and 3, little endian.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from llmprof.errors import ModelError
from llmprof.plaintext import one_line

# Larger than any real model's, small enough that a corrupt count costs no time and no memory.
MAX_HEADER = 64 << 20
MAX_STRING = 8 << 20
MAX_ARRAY = 1 << 22
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_DIMENSIONS = 4

_SPLIT_NUMBER, _SPLIT_COUNT, _SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_WHOLE = 64 << 20
"""Tensor data up to which all of it goes into ``weights_id``."""
_BLOCK = 4096

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}

TENSOR_TYPES = {
    # ggml_type → (name, weights a block, bytes a block); ggml.h and ggml-common.h
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Skipped:
    """An array that was walked over, not kept."""

    length: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: ``shape`` is row-major, the way numpy has it (GGUF stores it reversed)."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int
    """Absolute offset in the file, bytes."""
    path: str = ""
    """The file: of a split model, the part that holds it."""

    @property
    def type_name(self) -> str:
        return TENSOR_TYPES[self.type_id][0]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        _, weights, size = TENSOR_TYPES[self.type_id]
        return self.count // weights * size


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF model says about itself; every tensor is known to lie inside its file.

    A split model (``NAME-00001-of-00003.gguf``) is one header: the metadata of its first part, the
    tensors of all.
    """

    path: str
    version: int
    metadata: dict[str, Scalar | list[Any] | Skipped]
    tensors: dict[str, TensorInfo]
    data_start: int
    weights_id: str = field(repr=False)
    """SHA-256 over the tensor table, the architecture's own metadata (the same weights under
    another RoPE are another model), the file's size and its tensor data: all of it in a small file,
    else samples that reach every tensor."""
    parts: int = 1
    """Files that hold it."""

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def integer(self, key: str) -> int | None:
        """A metadata integer; ``None`` where absent or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, key: str) -> float | None:
        value = self.metadata.get(key)
        return value if isinstance(value, float) else self.integer(key)

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    @property
    def context_limit(self) -> int | None:
        return self.integer(f"{self.architecture}.context_length")

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding table: ids past the tokenizer's list may exist as padding."""
        table = self.tensors.get("token_embd.weight")
        if table and len(table.shape) == 2:
            return table.shape[0]
        return self.integer(f"{self.architecture}.vocab_size")


def read_header(path: str | os.PathLike[str], keep: Container[str] = ()) -> GgufHeader:
    """Read and check a GGUF header.

    Args:
        keep: metadata keys whose arrays are wanted; other arrays become ``Skipped``.

    Raises:
        ModelError: unreadable, not GGUF, truncated, or a value that no real file has; a part of a
            split model that is not the first, or a part that is missing.
    """
    first = _read_one(Path(path), keep)
    count = first.integer(_SPLIT_COUNT)
    return first if count is None or count < 2 else _joined(first, count)


def part_of_split(path: Path) -> tuple[str, int, int] | None:
    """(name without the number, number from 1, parts) of a file named as gguf-split does it."""
    match = _PART.fullmatch(path.name)
    return None if match is None else (match[1], int(match[2]), int(match[3]))


def _read_one(path: Path, keep: Container[str]) -> GgufHeader:
    shown = one_line(str(path))
    try:
        with path.open("rb") as file:
            return _Reader(file, shown).header(str(path), keep)
    except OSError as why:
        raise ModelError(f"{shown}: {why.strerror or why}") from None


def _joined(first: GgufHeader, count: int) -> GgufHeader:
    """The parts beside ``first``, which llama.cpp finds by their names as well
    (``llama_split_path`` in llama.cpp)."""
    path = Path(first.path)
    shown = one_line(first.path)
    number = first.integer(_SPLIT_NUMBER) or 0
    named = part_of_split(path)
    if number:
        stem = named[0] if named else path.stem
        raise ModelError(
            f"{shown}: part {number + 1} of {count} of a split model; give part 1:"
            f" {one_line(stem)}-00001-of-{count:05d}.gguf"
        )
    if named is None or named[1:] != (1, count):
        raise ModelError(
            f"{shown}: part 1 of {count} of a split model must be named"
            f" NAME-00001-of-{count:05d}.gguf, by which its other parts are found"
        )
    tensors = dict(first.tensors)
    digest = hashlib.sha256(first.weights_id.encode())
    for index in range(1, count):
        file = path.with_name(f"{named[0]}-{index + 1:05d}-of-{count:05d}.gguf")
        if not file.is_file():
            raise ModelError(f"{shown}: part {index + 1} of {count} is missing: {file.name}")
        part = _read_one(file, ())
        told = part.integer(_SPLIT_NUMBER), part.integer(_SPLIT_COUNT)
        twice = tensors.keys() & part.tensors.keys()
        if told != (index, count) or twice:
            wrong = told != (index, count)
            what = "another part's number" if wrong else f"tensor {one_line(min(twice), 80)} again"
            raise ModelError(
                f"{one_line(str(file))}: not part {index + 1} of {shown}: it has {what}"
            )
        tensors |= part.tensors
        digest.update(part.weights_id.encode())
    told_tensors = first.integer(_SPLIT_TENSORS)
    if told_tensors is not None and told_tensors != len(tensors):
        raise ModelError(
            f"{shown}: the {count} parts hold {len(tensors)} tensors, the model has {told_tensors};"
            " download them again"
        )
    return replace(first, tensors=tensors, weights_id=digest.hexdigest(), parts=count)


class _Reader:
    """Takes bytes off the file, never more than are left and never more than a bound."""

    def __init__(self, file: BinaryIO, shown: str) -> None:
        self.file = file
        self.shown = shown
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0

    def bad(self, what: str) -> ModelError:
        return ModelError(f"{self.shown}: corrupt GGUF: {what} (at byte {self.at})")

    def take(self, count: int) -> bytes:
        self.check(count)
        data = self.file.read(count)
        if len(data) != count:
            raise self.bad("the file ends early")
        self.at += count
        return data

    def skip(self, count: int) -> None:
        self.check(count)
        self.file.seek(count, os.SEEK_CUR)
        self.at += count

    def check(self, count: int) -> None:
        if self.at + count > self.size:
            raise self.bad("the file ends early")
        if self.at + count > MAX_HEADER:
            raise self.bad(f"a header of more than {MAX_HEADER >> 20} MiB")

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def count(self, what: str, limit: int) -> int:
        value: int = self.scalar("<Q")
        if value > limit:
            raise self.bad(f"{value} {what}")
        return value

    def string(self) -> str:
        # Tokens of byte-level vocabularies may be cut inside a character.
        return self.take(self.count("bytes in a string", MAX_STRING)).decode("utf-8", "replace")

    def value(self, keep: bool) -> Scalar | list[Any] | Skipped:
        kind = self.scalar("<I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self._plain(kind)
        element, length = self.scalar("<I"), self.count("array elements", MAX_ARRAY)
        if element == _STRING:
            if keep:
                return [self.string() for _ in range(length)]
            for _ in range(length):
                self.skip(self.count("bytes in a string", MAX_STRING))
            return Skipped(length)
        if element not in _SCALARS:
            raise self.bad(f"array of type {element}")
        layout = _SCALARS[element]
        size = struct.calcsize(layout)
        if keep:
            return list(struct.unpack(f"<{length}{layout[1]}", self.take(size * length)))
        self.skip(size * length)
        return Skipped(length)

    def _plain(self, kind: int) -> Scalar:
        if kind not in _SCALARS:
            raise self.bad(f"metadata value of type {kind}")
        value: Scalar = self.scalar(_SCALARS[kind])
        return value

    def header(self, path: str, keep: Container[str]) -> GgufHeader:
        if self.size < 4 or self.take(4) != b"GGUF":
            raise ModelError(f"{self.shown}: not a GGUF file")
        version = self.scalar("<I")
        if version not in (2, 3):
            raise ModelError(
                f"{self.shown}: GGUF version {version} is not supported"
                " (2 or 3, little endian); convert it with a current llama.cpp"
            )
        tensor_count = self.count("tensors", MAX_TENSORS)
        key_count = self.count("metadata keys", MAX_KEYS)
        metadata: dict[str, Scalar | list[Any] | Skipped] = {}
        for _ in range(key_count):
            key = self.string()
            metadata[key] = self.value(key in keep)
        start = self.at
        table = [self._tensor() for _ in range(tensor_count)]
        self.file.seek(start)
        digest = hashlib.sha256(self.file.read(self.at - start))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise self.bad("odd general.alignment")
        data_start = (self.at + alignment - 1) // alignment * alignment
        tensors = {
            name: replace(self._placed(name, shape, kind, data_start, offset, alignment), path=path)
            for name, shape, kind, offset in table
        }
        if len(tensors) != tensor_count:
            raise self.bad("two tensors of one name")
        architecture = metadata.get("general.architecture")
        for key in sorted(metadata):
            if key.startswith(f"{architecture}."):
                digest.update(f"{key} {metadata[key]!r}\n".encode("utf-8", "replace"))
        self._sample(digest, data_start, tensors.values())
        return GgufHeader(path, version, metadata, tensors, data_start, digest.hexdigest())

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        rank = self.scalar("<I")
        if rank > MAX_DIMENSIONS:
            raise self.bad(f"tensor of {rank} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(rank))[::-1]
        return name, shape, self.scalar("<I"), self.scalar("<Q")

    def _placed(
        self, name: str, shape: tuple[int, ...], kind: int, base: int, offset: int, alignment: int
    ) -> TensorInfo:
        label = one_line(name, 80)
        if kind not in TENSOR_TYPES:
            raise ModelError(
                f"{self.shown}: tensor {label} has type {kind}, which this llmprof does not know"
            )
        info = TensorInfo(name, shape, kind, base + offset)
        if not info.count or (shape[-1] if shape else 1) % TENSOR_TYPES[kind][1]:
            raise self.bad(
                f"tensor {label} has shape {list(shape)}, impossible as {info.type_name}"
            )
        if offset % alignment or info.start + info.n_bytes > self.size:
            raise ModelError(
                f"{self.shown}: corrupt GGUF: tensor {label} lies outside the file"
                f" ({info.start + info.n_bytes} > {self.size} bytes); download it again"
            )
        return info

    def _sample(
        self, digest: hashlib._Hash, data_start: int, tensors: Iterable[TensorInfo]
    ) -> None:
        """All of a small file; of a large one 64 blocks of 4 KiB spread over the data and one from
        the middle of each tensor: cheap, and one layer that was exchanged shows."""
        digest.update(struct.pack("<QQ", self.size, data_start))
        length = self.size - data_start
        if length <= _WHOLE:
            self.file.seek(data_start)
            digest.update(self.file.read())
            return
        places = [data_start + (length - _BLOCK) * i // 63 for i in range(64)]
        places += [tensor.start + tensor.n_bytes // 2 for tensor in tensors]
        for place in sorted(places):
            self.file.seek(place)
            digest.update(self.file.read(_BLOCK))
