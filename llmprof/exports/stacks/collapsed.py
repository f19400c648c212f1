"""Host stacks as collapsed stacks: ``outer;…;inner weight``, as flamegraph.pl and others read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmprof.analysis.host.frames import label
from llmprof.exports.formats import Progress
from llmprof.exports.stacks.rows import Stacks, engine_stacks
from llmprof.plaintext import one_line
from llmprof.records.steps import (
    StepChoice,
)

UNIT = 1000
"""A whole sample weighs this much: weights are integers, and a sample may lie partly in a gap."""


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """One file for all engines, all decode steps.

    Raises:
        UsageError: no engine has host stacks.
    """
    out.write_text(collapsed(engine_stacks(files, progress, steps)), encoding="utf-8")


def collapsed(engines: Iterable[tuple[str, Stacks]]) -> str:
    """The engine's label is the outermost frame."""
    counts: Counter[str] = Counter()
    for name, stacks in engines:
        for stack, weight in stacks:
            frames = [_clean(name), *(_clean(label(f)) for f in reversed(stack))]
            counts[";".join(frames)] += round(weight * UNIT)
    lines = [f"{stack} {count}" for stack, count in sorted(counts.items()) if count]
    return "\n".join(lines) + "\n"


def _clean(text: str) -> str:
    return one_line(text, 160).replace(";", ",")
