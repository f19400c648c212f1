"""Models that are on this machine: looks into a few folders only, opens no weights."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from llmprof.models.gguf.header import part_of_split
from llmprof.models.locate import SMOLLM2, default_model
from llmprof.models.presets import PRESETS

MOST = 50
"""Entries of a folder that are looked at."""


def found_models() -> list[tuple[str, str]]:
    """(what ``--model`` takes, what it is): real weights first, then shapes with random ones."""
    found: list[tuple[str, str]] = []
    if default_model() == SMOLLM2:
        found.append((SMOLLM2, "SmolLM2-135M-Instruct, real weights"))
    for folder in (Path(), Path("models"), Path.home() / "models"):
        found += [(str(path), "GGUF file") for path in _some(folder, "*.gguf") if _first(path)]
        configs = _some(folder, "*/config.json")
        found += [(str(c.parent), "Hugging Face folder") for c in configs if _has_weights(c)]
    for config in _some(_hub(), "models--*/snapshots/*/config.json"):
        if _has_weights(config):
            name = config.parent.parent.parent.name.removeprefix("models--").replace("--", "/")
            found.append((str(config.parent), f"{name}, from the hub's cache"))
    found += [(name, "this shape, random weights") for name in PRESETS]
    return list(dict(found).items())


def _has_weights(config: Path) -> bool:
    return any(config.parent.glob("*.safetensors"))


def _first(path: Path) -> bool:
    """Not a later part of a split model."""
    part = part_of_split(path)
    return part is None or part[1] == 1


def _hub() -> Path:
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"


def _some(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(islice(folder.glob(pattern), MOST))
    except OSError:
        return []
