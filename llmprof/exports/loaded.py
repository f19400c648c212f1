"""A run file with everything that a report needs, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import Report, build
from llmprof.analysis.view.traced import RunTrace, load_trace
from llmprof.exports.formats import Progress
from llmprof.records import (
    RunData,
    Unavailable,
)
from llmprof.records.steps import (
    StepChoice,
)


@dataclass(frozen=True)
class Loaded:
    """One run."""

    path: Path
    data: RunData
    report: Report
    trace: RunTrace | Unavailable

    @property
    def name(self) -> str:
        """Of the file as the user knows it."""
        return Path(self.data.shown_path).name


def read_data(path: Path, steps: StepChoice) -> RunData:
    """The small rows of one file."""
    return open_run(path, steps)


def load(files: Sequence[Path], progress: Progress, steps: StepChoice) -> list[Loaded]:
    """Read all files.

    Raises:
        RunFileError: one of them cannot be read.
    """
    found = []
    for number, path in enumerate(files):
        progress(f"reading {path.name}", number / len(files))
        data = read_data(path, steps)
        report = build(data)
        found.append(Loaded(path, data, report, load_trace(report, data)))
    return found
