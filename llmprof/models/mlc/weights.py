"""MLC's weight folders: ``tensor-cache.json``, or ``ndarray-cache.json`` of older MLC, and shards.

Standard library only. Nothing of a shard is read here but through ``StoredParameter.read``; every
offset is checked against the shard's real size first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmprof.errors import ModelError
from llmprof.models.locate import CACHE_FILES, read_json
from llmprof.models.mlc.metadata import ELEMENT_BYTES, MlcMetadata
from llmprof.plaintext import one_line

OURS = "llmprof"
"""Key in the cache file's metadata of what llmprof says about weights that it wrote."""
_SAMPLE = 4096
_SMALL = 64 << 20
"""Bytes up to which all of them go into an id."""


@dataclass(frozen=True)
class StoredParameter:
    """Where a parameter lies."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str
    """``raw``, or ``f32-to-bf16``: a float32 stored as the upper halves of its words."""
    file: Path
    start: int
    n_bytes: int

    def read(self) -> bytes:
        """The stored bytes.

        Raises:
            ModelError: the shard cannot be read or has shrunk.
        """
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.n_bytes)
        except OSError as why:
            raise ModelError(f"{one_line(str(self.file))}: {why.strerror or why}") from None
        if len(data) != self.n_bytes:
            raise ModelError(f"{one_line(str(self.file))}: ends inside {one_line(self.name, 80)}")
        return data


@dataclass(frozen=True)
class MlcWeights:
    """A checked weight folder."""

    folder: Path
    cache_file: str
    stored: Mapping[str, StoredParameter]
    ours: Mapping[str, Any]

    @property
    def random(self) -> bool:
        return bool(self.ours.get("random"))

    @property
    def weights_id(self) -> str | None:
        """Equal for engines that hold the same real weights; ``None`` for random ones."""
        if self.random:
            return None
        known = self.ours.get("weights_id")
        return one_line(known, 200) if isinstance(known, str) else self._sampled_id()

    def _sampled_id(self) -> str:
        """Names, shapes, and all values of a small folder; of a large one the first, the middle and
        the last bytes of every parameter."""
        digest = hashlib.sha256()
        small = sum(stored.n_bytes for stored in self.stored.values()) <= _SMALL
        for name in sorted(self.stored):
            stored = self.stored[name]
            digest.update(f"{name} {stored.shape} {stored.dtype}\n".encode("utf-8", "replace"))
            size, last = stored.n_bytes, max(0, stored.n_bytes - _SAMPLE)
            places = [(0, size)] if small else [(at, _SAMPLE) for at in (0, last // 2, last)]
            with stored.file.open("rb") as file:
                for at, count in places:
                    file.seek(stored.start + at)
                    digest.update(file.read(min(count, size - at)))
        return f"mlc-{digest.hexdigest()[:24]}"

    def check_fits(self, library: MlcMetadata, vocab_size: int, shown_library: str) -> None:
        """Raise ``ModelError`` for the first parameter that the library expects otherwise."""
        shown = one_line(str(self.folder))
        for parameter in library.parameters:
            name = one_line(parameter.name, 80)
            stored = self.stored.get(parameter.name)
            if stored is None:
                raise ModelError(
                    f"{shown}: parameter {name} is missing, {shown_library} expects it"
                    f" ({len(self.stored)} stored, {len(library.parameters)} expected);"
                    " use weights and a library of one model and quantisation"
                )
            wanted = parameter.stored_sizes(vocab_size)
            if stored.shape != wanted:
                raise ModelError(
                    f"{shown}: parameter {name} has shape {list(stored.shape)},"
                    f" {shown_library} expects {list(wanted)}"
                )
            if stored.dtype != parameter.dtype:
                raise ModelError(
                    f"{shown}: parameter {name} is {stored.dtype},"
                    f" {shown_library} expects {parameter.dtype}"
                )
        extra = len(self.stored) - len(library.parameters)
        if extra > 0:
            raise ModelError(
                f"{shown}: {len(self.stored)} parameters, {shown_library} expects"
                f" {len(library.parameters)}; use weights and a library of one model"
            )


def open_weights(folder: Path) -> MlcWeights:
    """Read and check the cache file of ``folder`` and the sizes of its shards.

    Raises:
        ModelError: no cache file, an unknown format, a damaged or escaping entry.
    """
    shown = one_line(str(folder))
    name = next((n for n in CACHE_FILES if (folder / n).is_file()), None)
    if name is None:
        raise ModelError(
            f"{shown}: neither {CACHE_FILES[0]} nor {CACHE_FILES[1]}; convert the weights with:"
            " llmprof model prepare --engine mlc, or make random ones with: llmprof model synth"
        )
    document = read_json(folder / name)
    where = f"{shown}/{name}"
    shards = document.get("records")
    if not isinstance(shards, list):
        raise ModelError(f"{where}: no list of records")
    stored: dict[str, StoredParameter] = {}
    for shard in shards:
        _read_shard(folder, where, shard, stored)
    if not stored:
        raise ModelError(f"{where}: holds no parameter")
    metadata = document.get("metadata")
    ours = metadata.get(OURS) if isinstance(metadata, dict) else None
    return MlcWeights(folder, name, stored, ours if isinstance(ours, dict) else {})


def _read_shard(folder: Path, where: str, shard: Any, stored: dict[str, StoredParameter]) -> None:
    if not isinstance(shard, dict):
        raise ModelError(f"{where}: a record is no object")
    path, kind, size, records = (
        shard.get(key) for key in ("dataPath", "format", "nbytes", "records")
    )
    if not isinstance(path, str) or Path(path).name != path or path in ("", ".", ".."):
        # One name, so that no entry leads out of the folder.
        raise ModelError(f"{where}: dataPath {one_line(repr(path), 80)} is no plain file name")
    if kind != "raw-shard":
        raise ModelError(f"{where}: {path} has format {one_line(repr(kind), 40)}, not raw-shard")
    file = folder / path
    try:
        actual = file.stat().st_size
    except (OSError, ValueError) as why:
        reason = getattr(why, "strerror", None) or why
        raise ModelError(f"{where}: shard {one_line(path, 80)}: {reason}") from None
    if type(size) is not int or size != actual:
        raise ModelError(
            f"{where}: shard {one_line(path, 80)} has {actual} bytes, {one_line(repr(size), 30)}"
            " expected; copy or convert it again"
        )
    if not isinstance(records, list):
        raise ModelError(f"{where}: shard {one_line(path, 80)} has no records")
    for record in records:
        parameter = _record(file, where, record, actual)
        if parameter.name in stored:
            raise ModelError(f"{where}: parameter {one_line(parameter.name, 80)} is there twice")
        stored[parameter.name] = parameter


def _record(file: Path, where: str, record: Any, shard_bytes: int) -> StoredParameter:
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        raise ModelError(f"{where}: a parameter of {one_line(file.name, 80)} has no name")
    name = f"{where}: parameter {one_line(record['name'], 80)}"
    shape, dtype = record.get("shape"), record.get("dtype")
    encoding = record.get("format", "raw")
    start, size = record.get("byteOffset"), record.get("nbytes")
    if not isinstance(shape, list) or any(type(s) is not int or s < 0 for s in shape):
        raise ModelError(f"{name} has the shape {one_line(repr(shape), 60)}")
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise ModelError(f"{name} has dtype {one_line(repr(dtype), 40)}, which is not known")
    if encoding not in ("raw", "f32-to-bf16"):
        raise ModelError(f"{name} has format {one_line(repr(encoding), 40)}, which is not known")
    # Other types are stored as they are, whatever the format says (tvm.contrib.tvmjs).
    halved = encoding == "f32-to-bf16" and dtype == "float32"
    wanted = math.prod(shape) * (2 if halved else ELEMENT_BYTES[dtype])
    if type(start) is not int or type(size) is not int or start < 0 or size != wanted:
        raise ModelError(
            f"{name}: {one_line(repr(size), 30)} bytes at {one_line(repr(start), 30)},"
            f" its shape and type take {wanted}"
        )
    if start + size > shard_bytes:
        raise ModelError(f"{name} ends at byte {start + size}, its shard has {shard_bytes} bytes")
    return StoredParameter(
        record["name"],
        tuple(shape),
        dtype,
        "f32-to-bf16" if halved else "raw",
        file,
        start,
        size,
    )
