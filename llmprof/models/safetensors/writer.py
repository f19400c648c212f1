"""Writing a safetensors file piece by piece: memory stays at one chunk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.models.safetensors.header import ELEMENT_BYTES

Chunks = Iterable[NDArray[Any]]
"""The tensor's data in row-major order, cut anywhere."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is made when its turn comes."""

    name: str
    dtype: str
    """As safetensors spells it: ``F16``, ``I32``."""
    shape: tuple[int, ...]
    make: Callable[[], Chunks]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


def write_safetensors(
    path: Path, tensors: Sequence[PlannedTensor], told: Callable[[int], None]
) -> None:
    """Write all tensors; ``told`` hears the bytes written so far.

    Raises:
        OSError: the disk is full or not writable (what was written stays; the caller removes it).
    """
    # What is not a multiple of the alignment (markers, group tables) goes last: the large ones
    # stay aligned, as loaders that map the file like them.
    ordered = sorted(tensors, key=lambda tensor: tensor.n_bytes % _ALIGNMENT != 0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.n_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    written = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            start = written
            for chunk in tensor.make():
                data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
                file.write(data.data)
                written += data.size
                told(written)
            if written - start != tensor.n_bytes:
                raise ValueError(
                    f"{tensor.name}: {written - start} bytes made, {tensor.n_bytes} planned"
                )
