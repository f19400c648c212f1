"""What an export was made of: Nsight Systems' own, or converted from another profiler's file."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from llmprof.plaintext import one_line

NSYS, TORCH = "Nsight Systems", "torch.profiler"
_FORMAT, SOURCE_FILE, _RANK = (
    "LLMPROF_SOURCE_FORMAT",
    "LLMPROF_SOURCE_FILE",
    "LLMPROF_SOURCE_RANK",
)
"""Rows of META_DATA_EXPORT."""


@dataclass(frozen=True)
class Source:
    """Texts are untrusted."""

    format: str = NSYS
    """``Nsight Systems``, ``torch.profiler``, ``rocprofv3``."""
    version: str = "?"
    file: str = ""
    """What the user opened; empty: the export itself."""
    ranks: tuple[int, int] | None = None
    """(rank, world size) of a file that says them."""


def facts(source: Source) -> list[tuple[str, str]]:
    """(name, value) for META_DATA_EXPORT."""
    found = [(_FORMAT, source.format), (SOURCE_FILE, source.file)]
    if source.ranks is not None:
        found.append((_RANK, json.dumps(source.ranks)))
    return found


def read_source(sql: sqlite3.Connection, tables: set[str]) -> Source:
    """Of any export."""
    table = next((t for t in ("META_DATA_EXPORT", "EXPORT_META_DATA") if t in tables), None)
    rows = [] if table is None else sql.execute(f"SELECT name, value FROM {table}").fetchall()
    values = [(str(name), str(value)) for name, value in rows]
    first = dict(reversed(values))
    return Source(
        format=one_line(first.get(_FORMAT, NSYS), 60),
        version=one_line(first.get("EXPORT_PRODUCT_VERSION", "?"), 60),
        file=first.get(SOURCE_FILE, ""),
        ranks=_ranks(first.get(_RANK, "")),
    )


def _ranks(text: str) -> tuple[int, int] | None:
    try:
        rank, world = json.loads(text)
    except ValueError:
        return None
    return (rank, world) if type(rank) is int and type(world) is int else None
