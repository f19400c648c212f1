"""Formats of the export dialog, and the call that writes one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

from llmprof.errors import LlmprofError

FORMATS: Final = {
    "nsys": "SQLite in Nsight Systems' export schema",
    "perfetto": "trace for ui.perfetto.dev",
    "chrome": "Chrome trace JSON",
    "parquetdir": "folder of Parquet tables",
    "csv": "tables as CSV",
    "markdown": "report as Markdown",
    "html": "report as one HTML page",
    "json": "the --json document",
}
ENDINGS: Final = {
    "nsys": ".nsys.sqlite", "perfetto": ".pftrace", "chrome": ".trace.json", "parquetdir": "",
    "csv": "", "markdown": ".md", "html": ".html", "json": ".json",
}  # fmt: skip


def write(paths: list[Path], to: str, out: Path) -> str:
    """Write one format; what was written, in words.

    Raises:
        LlmprofError: it could not be written, or this llmprof has no exports.
    """
    try:
        formats = import_module("llmprof.exports.formats")
    except ModuleNotFoundError as why:
        if why.name != "llmprof.exports.formats":
            raise LlmprofError(f"export to {to} needs the package {why.name}") from None
        raise LlmprofError(
            "this llmprof cannot export: llmprof.exports.formats is missing"
        ) from why
    if out.exists():
        raise LlmprofError(f"{out} is there already: choose another name")
    formats.export_runs(paths, to, out, None)
    return f"wrote {out}"
