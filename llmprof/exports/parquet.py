"""``--to parquetdir``: one Parquet file a table, as ``nsys export -t parquetdir`` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmprof.errors import UsageError
from llmprof.exports.formats import Progress
from llmprof.records.steps import (
    StepChoice,
)
from llmprof.runfile.tables import RawTables


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """A folder with a file for every table that has rows (and META_DATA_EXPORT).

    Raises:
        UsageError: several runs; merge them with ``--to nsys`` first.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    if len(files) > 1:
        raise UsageError("--to parquetdir takes one run: merge several with --to nsys first")
    kinds = {"INTEGER": arrow.int64(), "REAL": arrow.float64()}
    out.mkdir()
    with RawTables(files[0]) as tables:
        names = tables.names()
        for number, table in enumerate(names):
            progress(table, number / len(names))
            columns = tables.columns(table)
            schema = arrow.schema([(c, kinds.get(kind, arrow.string())) for c, kind in columns])
            writer: Any = None
            try:
                for rows in tables.batches(table):
                    cells = list(zip(*rows, strict=True))
                    data = [
                        arrow.array(_as(kind, values), type=schema.field(i).type)
                        for i, ((_, kind), values) in enumerate(zip(columns, cells, strict=True))
                    ]
                    if writer is None:
                        writer = parquet.ParquetWriter(out / f"{table}.parquet", schema)
                    writer.write_batch(arrow.record_batch(data, schema=schema))
            finally:
                if writer is not None:
                    writer.close()


def _as(kind: str, values: tuple[Any, ...]) -> list[Any]:
    """SQLite's types are those of the values, Parquet's those of the column."""
    if kind == "INTEGER":
        return [None if v is None else int(v) for v in values]
    if kind == "REAL":
        return [None if v is None else float(v) for v in values]
    return [None if v is None else v if isinstance(v, str) else str(v) for v in values]
