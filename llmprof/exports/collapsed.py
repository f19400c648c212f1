"""Host stacks as collapsed stacks: ``outer;…;inner weight``, as flamegraph.pl and others read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llmprof.analysis.host_frames import label
from llmprof.exports.formats import Progress, silent
from llmprof.exports.host_stacks import Selection, engine_stacks
from llmprof.plaintext import one_line

UNIT = 1000
"""A whole sample weighs this much: weights are integers, and a sample may lie partly in a gap."""


def write(files: Sequence[Path], out: Path, progress: Progress, step_range: str | None) -> None:
    """As ``exports.formats`` calls it: every engine, all decode steps."""
    write_collapsed(files, out, progress=progress, step_range=step_range)


def write_collapsed(
    paths: Sequence[Path],
    out: Path,
    *,
    engine: str | None = None,
    select: Selection = "all",
    progress: Progress = silent,
    step_range: str | None = None,
) -> list[Path]:
    """One ``.collapsed`` file for all engines, the engine's label as outermost frame.

    Args:
        engine: only the engine with this label.
        select: ``gaps`` for what ran while the GPU was idle.

    Raises:
        UsageError: no such engine, or no engine has host stacks.
        OSError: ``out`` cannot be written.
    """
    counts: Counter[str] = Counter()
    for name, stacks in engine_stacks(paths, engine, select, progress, step_range):
        for stack, weight in stacks:
            frames = [_clean(name), *(_clean(label(f)) for f in reversed(stack))]
            counts[";".join(frames)] += round(weight * UNIT)
    lines = [f"{stack} {count}" for stack, count in sorted(counts.items()) if count]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [out]


def _clean(text: str) -> str:
    return one_line(text, 160).replace(";", ",")
