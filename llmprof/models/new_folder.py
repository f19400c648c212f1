"""A model folder that appears whole or not at all. Standard library only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmprof.errors import UsageError
from llmprof.newfiles import hidden_beside, publish
from llmprof.plaintext import one_line

_SPARE = 64 << 20
"""Bytes left free beside the model."""


@contextmanager
def new_folder(target: Path, n_bytes: int) -> Iterator[Path]:
    """Give a folder to write into; it becomes ``target`` when the block ends well.

    Args:
        n_bytes: what will be written.

    Raises:
        UsageError: ``target`` exists, cannot be made, or the disk has too little room.
    """
    shown = one_line(str(target))
    there = f"{shown} exists and is not overwritten; remove it or name another folder"
    if target.exists():
        raise UsageError(there)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < n_bytes + _SPARE:
            raise UsageError(
                f"{shown}: the model takes {n_bytes / 1e9:.2f} GB,"
                f" {free / 1e9:.2f} GB are free on that disk"
            )
        with hidden_beside(target) as hidden:
            partial = hidden / target.name
            partial.mkdir()
            yield partial
            publish(partial, target)
    except FileExistsError:
        raise UsageError(there) from None
    except OSError as why:
        raise UsageError(f"{shown}: {why.strerror or why}") from None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
