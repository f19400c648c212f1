"""What the MLC tests share: libraries that are compiled once, weight folders, an engine to load."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.engines.base import LoadRequest
from llmprof.engines.mlc.engine import MlcEngine
from llmprof.models.mlc.writer import PlannedParameter, write_weights

WEIGHTS_ID = "tiny-mlc-1"


def write_folder(
    folder: Path, tensors: dict[str, np.ndarray], weights_id: str | None = WEIGHTS_ID
) -> Path:
    """An MLC weight folder without a config, as ``mlc_llm convert_weight`` leaves it."""
    folder.mkdir(exist_ok=True)
    write_weights(
        folder,
        [
            PlannedParameter(name, value.shape, str(value.dtype), partial(lambda v: [v], value))
            for name, value in tensors.items()
        ],
        {} if weights_id is None else {"weights_id": weights_id},
        lambda written: None,
    )
    return folder


def load(model: object, *, batch: int = 1, positions: int = 64, **options: str) -> MlcEngine:
    engine = MlcEngine()
    request = LoadRequest(str(model), options, batch, positions, seed=1)
    engine.load(request, lambda text, share: None)
    return engine


def decode(engine: Any, rows: list[list[int]], steps: int) -> list[list[int]]:
    """One row of tokens a sequence."""
    engine.reset()
    found = [list(engine.prefill(rows))]
    found += [list(engine.decode_step()) for _ in range(steps)]
    return [list(column) for column in zip(*found, strict=True)]


def edit_cache(folder: Path, change: Any) -> None:
    """``change(document)`` on the folder's tensor-cache.json."""
    file = folder / "tensor-cache.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
