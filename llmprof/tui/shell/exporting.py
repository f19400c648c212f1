"""The export dialog's formats and default names, and the call that writes one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmprof.config import check_target, locked
from llmprof.exports.formats import FORMATS, default_output, export_runs
from llmprof.records.steps import (
    StepChoice,
)


def choices(source: Path) -> Mapping[str, tuple[str, str]]:
    """Format → (what it is, default path in the current folder)."""
    # An account that may write below its home only is shown the names that it may use.
    folder = Path() if locked() else Path.cwd()
    return {
        name: (entry.summary, str(default_output(folder / source.name, name)))
        for name, entry in FORMATS.items()
    }


def write(paths: list[Path], to: str, out: str, steps: StepChoice) -> str:
    """Write one format; what was written, in words.

    Raises:
        LlmprofError: it could not be written.
    """
    if locked():
        check_target(out)
    made = export_runs(paths, to, Path(out).expanduser(), None, steps)
    return f"wrote {made}"
