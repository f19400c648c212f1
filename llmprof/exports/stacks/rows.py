"""The stacks that the flame-graph exports share: which engines, which part of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.errors import UsageError
from llmprof.exports.formats import Progress, silent
from llmprof.exports.loaded import read_data
from llmprof.plaintext import one_line
from llmprof.records import (
    HostFrame,
    Unavailable,
)
from llmprof.records.steps import (
    AUTO_STEPS,
    StepChoice,
)

Selection = Literal["all", "gaps"]
"""``all``: every decode step. ``gaps``: only while the GPU was idle in them."""
Stacks = list[tuple[tuple[HostFrame, ...], float]]


def engine_stacks(
    paths: Sequence[Path],
    progress: Progress = silent,
    steps: StepChoice = AUTO_STEPS,
    *,
    engine: str | None = None,
    select: Selection = "all",
) -> list[tuple[str, Stacks]]:
    """(label, stacks) of every engine that has some; several files put their name before it.

    Args:
        engine: only the engine with this label.
        select: ``gaps`` for what ran while the GPU was idle.

    Raises:
        UsageError: no such engine, or none has host stacks.
        RunFileError: a file cannot be read.
    """
    found: list[tuple[str, Stacks]] = []
    labels, reasons = [], []
    for number, path in enumerate(paths):
        progress(path.name, number / len(paths))
        data = read_data(path, steps)
        for trace in RunTrace(path, data).engines:
            labels.append(trace.label)
            if engine is not None and trace.label != engine:
                continue
            stacks = _stacks(trace, select)
            if isinstance(stacks, Unavailable):
                reasons.append(f"{trace.label}: {stacks.reason}")
            else:
                name = trace.label if len(paths) == 1 else f"{path.name}: {trace.label}"
                found.append((name, stacks))
    if engine is not None and engine not in labels:
        raise UsageError(f"no engine {one_line(engine)!r}; there are: {', '.join(labels)}")
    if not found:
        raise UsageError(f"no host stacks: {one_line('; '.join(reasons) or 'no engine')}")
    return found


def _stacks(trace: EngineTrace, select: Selection) -> Stacks | Unavailable:
    if isinstance(trace.host, Unavailable):
        return trace.host
    if select == "all":
        return trace.host.weighted()
    causes = trace.causes
    if isinstance(causes, Unavailable):
        return causes
    return list(causes.stacks) or Unavailable("no sample fell into a gap")
