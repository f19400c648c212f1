"""``points.parquet``: one row a point and engine, replaced as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage
from llmprof.newfiles import hidden_beside
from llmprof.sweep.rows import COUNTS, MAPS, NUMBERS, TEXTS, Row


def check_pyarrow() -> None:
    """Raise ``MissingPackage`` before anything runs, not after."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise MissingPackage(
            f"a sweep keeps its points in Parquet, which needs pyarrow: {how_to_install('export')}"
        )


def write(rows: Sequence[Row], target: Path) -> None:
    """Put the rows in place of ``target``: a reader sees the old file or the new one.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    import pyarrow.parquet as parquet

    table = table_of(rows)
    with hidden_beside(target) as folder:
        part = folder / target.name
        parquet.write_table(table, part, compression="zstd")
        part.replace(target)


def table_of(rows: Sequence[Row]) -> Any:
    """A pyarrow table; ``categories`` is category → ms a step."""
    import pyarrow as arrow

    text_map = arrow.map_(arrow.string(), arrow.string())
    schema = arrow.schema(
        [
            *((name, arrow.string()) for name in TEXTS),
            *((name, arrow.int64()) for name in COUNTS),
            *((name, arrow.float64()) for name in NUMBERS),
            ("categories", arrow.map_(arrow.string(), arrow.float64())),
            ("warnings", arrow.list_(arrow.string())),
            *((name, text_map) for name in MAPS),
        ]
    )
    columns = []
    for entry in schema:
        values = [row.get(entry.name) for row in rows]
        if entry.name in MAPS or entry.name == "categories":
            values = [None if v is None else list(v.items()) for v in values]
        columns.append(arrow.array(values, type=entry.type))
    return arrow.Table.from_arrays(columns, schema=schema)
