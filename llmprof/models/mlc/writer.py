"""Writing an MLC weight folder, as ``tvm.contrib.tvmjs.dump_tensor_cache`` does. Uses numpy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.models.locate import CACHE_FILES
from llmprof.models.mlc.metadata import ELEMENT_BYTES
from llmprof.models.mlc.weights import OURS
from llmprof.models.new_folder import write_json

SHARD_BYTES = 32 << 20
"""A parameter of half as much has a shard of its own."""


@dataclass(frozen=True)
class PlannedParameter:
    """A parameter that is made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Iterable[NDArray[Any]]]
    """Values in row-major order, cut anywhere; bfloat16 as uint16 words."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


def write_weights(
    folder: Path,
    parameters: Iterable[PlannedParameter],
    ours: Mapping[str, Any],
    told: Callable[[int], None],
) -> None:
    """Write shards and ``tensor-cache.json``; ``told`` hears the bytes written so far.

    Raises:
        OSError: the disk is full or not writable.
    """
    planned = list(parameters)
    shards = []
    written = 0
    for number, group in enumerate(_grouped(planned)):
        name = f"params_shard_{number}.bin"
        digest = hashlib.md5(usedforsecurity=False)
        records = []
        offset = 0
        with (folder / name).open("wb") as file:
            for parameter in group:
                start = offset
                for chunk in parameter.make():
                    data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
                    file.write(data.data)
                    digest.update(data.data)
                    offset += data.size
                    told(written + offset)
                if offset - start != parameter.n_bytes:
                    raise ValueError(
                        f"{parameter.name}: {offset - start} bytes made,"
                        f" {parameter.n_bytes} planned"
                    )
                records.append(
                    {
                        "name": parameter.name,
                        "shape": list(parameter.shape),
                        "dtype": parameter.dtype,
                        "format": "raw",
                        "nbytes": parameter.n_bytes,
                        "byteOffset": start,
                    }
                )
        written += offset
        shards.append(
            {
                "dataPath": name,
                "format": "raw-shard",
                "nbytes": offset,
                "records": records,
                "md5sum": digest.hexdigest(),
            }
        )
    metadata = {"ParamSize": len(planned), "ParamBytes": float(written), OURS: dict(ours)}
    write_json(folder / CACHE_FILES[0], {"metadata": metadata, "records": shards})


def _grouped(parameters: Iterable[PlannedParameter]) -> Iterable[list[PlannedParameter]]:
    group: list[PlannedParameter] = []
    size = 0
    for parameter in parameters:
        if size + parameter.n_bytes >= SHARD_BYTES:
            if 2 * parameter.n_bytes >= SHARD_BYTES:
                yield [parameter]
                continue
            if group:
                yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.n_bytes
    if group:
        yield group
