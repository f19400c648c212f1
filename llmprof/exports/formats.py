"""All export formats in one registry, and the one way to write them.

The command line and the TUI's dialog both call ``export_runs``. A writer is imported when it is
used; it writes into a hidden folder beside the target, which gets its name when all is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage, UsageError
from llmprof.newfiles import hidden_beside, publish
from llmprof.plaintext import one_line
from llmprof.records.steps import (
    AUTO_STEPS,
    StepChoice,
)

Progress = Callable[[str, float | None], None]
"""(what is done now, share 0–1 or ``None`` where it is not known)."""


@dataclass(frozen=True)
class Format:
    """One output format."""

    name: str
    suffix: str
    """Of the usual file name; a folder where ``folder`` is set."""
    summary: str
    module: str
    """Has ``write(files, out, progress, steps)``."""
    folder: bool = False
    package: str = ""
    """Import name of the package of the extra ``export`` that it needs."""


_FORMATS = (
    Format("html", ".html", "one page: timelines, waterfall, tables", "html.page"),
    Format(
        "perfetto", ".pftrace", "for ui.perfetto.dev", "timeline.perfetto_trace", package="perfetto"
    ),
    Format("nsys", ".sqlite", "Nsight Systems' SQLite; several as one", "nsys"),
    Format("chrome", ".json", "Chrome trace events", "timeline.chrome"),
    Format(
        "parquetdir", ".parquetdir", "one Parquet file a table", "parquet", True, package="pyarrow"
    ),
    Format("csv", "", "a folder of tables: steps, kernels …", "text.csv_tables", True),
    Format("markdown", ".md", "the report as Markdown tables", "text.markdown"),
    Format("json", ".json", "the document of --json", "json.file"),
    Format(
        "benchmark-report",
        ".benchmark-report",
        "llm-d's Benchmark Report v0.2.1",
        "interchange.benchmark_report",
        True,
    ),
    Format("llama-bench", ".json", "the JSON of llama-bench", "interchange.llama_bench"),
    Format(
        "speedscope", ".speedscope.json", "host stacks, for speedscope.app", "stacks.speedscope"
    ),
    Format("collapsed", ".collapsed", "host stacks, for flamegraph.pl", "stacks.collapsed"),
)
FORMATS = {entry.name: entry for entry in _FORMATS}


def default_output(source: Path, to: str) -> Path:
    """Beside the run file: ``run.sqlite`` → ``run.html``, ``run.nsys.sqlite``, ``run_csv``."""
    chosen = FORMATS[to]
    stem = source.stem if source.suffix != ".gz" else source.with_suffix("").stem
    if to == "csv":
        return source.with_name(f"{stem}_csv")
    shared = chosen.suffix in (".json", ".sqlite") and chosen.suffix != f".{to}"
    middle = f".{to}" if shared or chosen.suffix in source.suffixes else ""
    return source.with_name(f"{stem}{middle}{chosen.suffix}")


def export_runs(
    paths: Sequence[str | Path],
    to: str,
    out: str | Path,
    progress: Progress | None = None,
    steps: StepChoice = AUTO_STEPS,
) -> Path:
    """Write one or several runs in one format.

    Args:
        paths: run files, or exports of Nsight Systems.
        to: a key of ``FORMATS``.
        out: the new file, or folder for the formats that make one.
        steps: what the steps are, of files that llmprof did not record.

    Returns:
        ``out``.

    Raises:
        UsageError: no such format, ``out`` exists, its folder does not.
        MissingPackage: the format needs the extra ``export``.
        RunFileError: an input cannot be read.
    """
    if to not in FORMATS:
        raise UsageError(f"no format {to!r}: choose one of {', '.join(FORMATS)}")
    chosen, target = FORMATS[to], Path(out)
    files = [Path(path) for path in paths]
    _check_target(target)
    if chosen.package:
        try:
            import_module(chosen.package)
        except ImportError:
            raise MissingPackage(
                f"--to {to} needs the package {chosen.package}: {how_to_install('export')}"
            ) from None
    writer: Any = import_module(f"llmprof.exports.{chosen.module}")
    try:
        with hidden_beside(target) as hidden:
            part = hidden / target.name
            writer.write(files, part, progress or silent, steps)
            publish(part, target)
    except FileExistsError:
        raise UsageError(_there(target)) from None
    except OSError as why:
        raise UsageError(
            f"{one_line(str(target))}: cannot be written: {why.strerror or why}"
        ) from None
    return target


def silent(what: str, share: float | None) -> None:
    """Nobody watches."""


def _check_target(target: Path) -> None:
    name = one_line(str(target))
    if os.path.lexists(target):
        raise UsageError(_there(target))
    if not target.parent.is_dir():
        raise UsageError(f"{name}: folder {one_line(str(target.parent))} does not exist: create it")


def _there(target: Path) -> str:
    return f"{one_line(str(target))}: exists already: remove it or use -o with another name"
