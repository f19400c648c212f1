"""``--to nsys``: a checkpointed copy, or several runs on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmprof.exports.formats import Progress
from llmprof.records.steps import (
    StepChoice,
)
from llmprof.runfile.writing.copying import copy_file, merge_files


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """A file that ``nsys stats`` reads as it is."""
    if len(files) == 1:
        copy_file(files[0], out, lambda share: progress("copying", share))
    else:
        merge_files(files, out, lambda share: progress("merging", share))
