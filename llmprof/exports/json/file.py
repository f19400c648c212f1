"""``--to json``: the document of ``--json``; several runs as a list under ``runs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmprof.exports.formats import Progress
from llmprof.exports.json.comparison import SCHEMA_VERSION
from llmprof.exports.json.report import to_document, to_text
from llmprof.exports.loaded import load
from llmprof.records.steps import (
    StepChoice,
)


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """One document."""
    runs = [to_document(r.report, r.data, r.trace) for r in load(files, progress, steps)]
    document = runs[0] if len(runs) == 1 else {"schema_version": SCHEMA_VERSION, "runs": runs}
    out.write_text(to_text(document), encoding="utf-8")
