"""Which NVTX ranges of an export of Nsight Systems are its decode steps: looked up and read anew,
both on a thread, since a file may hold a million ranges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from textual.message import Message

from llmprof.analysis.steps.candidates import is_operator
from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.opening import open_run, step_candidates
from llmprof.errors import LlmprofError
from llmprof.records.steps import (
    StepChoice,
)
from llmprof.tui.drawing.cells import clean
from llmprof.tui.drawing.numbers import duration

MOST = 12
"""Patterns offered; any other can be typed."""
_NAME = 26


class RangesFound(Message):
    """Pattern → (what it is, pattern), the best guess first; or why there is none.

    ``likely``: some may be steps; the others are a framework's operators.
    """

    def __init__(
        self, entries: Mapping[str, tuple[str, str]], likely: bool, error: str, asked: bool
    ) -> None:
        super().__init__()
        self.entries = entries
        self.likely = likely
        self.error = error
        self.asked = asked


class Picked(Message):
    """The file read with other steps, or why that went wrong."""

    def __init__(self, source: RunDataSource | None, steps: StepChoice, error: str = "") -> None:
        super().__init__()
        self.source = source
        self.steps = steps
        self.error = error


def find(source: RunDataSource) -> tuple[dict[str, tuple[str, str]], bool, str]:
    """What ``RangesFound`` tells."""
    try:
        patterns = step_candidates(Path(source.path))[:MOST]
    except LlmprofError as why:
        return {}, False, str(why)
    entries: dict[str, tuple[str, str]] = {}
    for found in patterns:
        name = clean(found.pattern)
        if len(name) > _NAME:
            name = f"{name[: _NAME - 1]}…"
        what = f"{found.ranges:,}× {duration(found.median_ns)}"
        if found.inside is not None:
            what += f", {found.inside:.0%} of launches"
        entries.setdefault(name, (what, found.pattern))
    return entries, not all(is_operator(found.pattern) for found in patterns), ""


def reread(source: RunDataSource, step_range: str) -> Picked:
    choice = StepChoice("ranges", step_range)
    try:
        return Picked(RunDataSource(open_run(Path(source.path), choice)), choice)
    except LlmprofError as why:
        return Picked(None, choice, str(why))
