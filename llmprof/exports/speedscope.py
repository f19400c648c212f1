"""Host stacks as a speedscope file (https://www.speedscope.app/file-format-schema.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmprof import __version__
from llmprof.analysis.host_frames import label
from llmprof.exports.formats import Progress, silent
from llmprof.exports.host_stacks import Selection, engine_stacks
from llmprof.plaintext import one_line


def write(files: Sequence[Path], out: Path, progress: Progress, step_range: str | None) -> None:
    """As ``exports.formats`` calls it: every engine, all decode steps."""
    write_speedscope(files, out, progress=progress, step_range=step_range)


def write_speedscope(
    paths: Sequence[Path],
    out: Path,
    *,
    engine: str | None = None,
    select: Selection = "all",
    progress: Progress = silent,
    step_range: str | None = None,
) -> list[Path]:
    """One file with a sampled profile for each engine.

    A weight is a sample's share: 1, or the part of it that lay in gaps.

    Args:
        engine: only the engine with this label.
        select: ``gaps`` for what ran while the GPU was idle.

    Raises:
        UsageError: no such engine, or no engine has host stacks.
        OSError: ``out`` cannot be written.
    """
    frames: list[dict[str, Any]] = []
    index: dict[str, int] = {}
    profiles = []
    for name, stacks in engine_stacks(paths, engine, select, progress, step_range):
        samples, weights = [], []
        for stack, weight in stacks:
            row = []
            for frame in reversed(stack):
                text = label(frame)
                if text not in index:
                    index[text] = len(frames)
                    known = {"name": text, "file": one_line(frame.file, 300)}
                    frames.append({**known, "line": frame.line} if frame.line else known)
                row.append(index[text])
            samples.append(row)
            weights.append(weight)
        profiles.append(
            {
                "type": "sampled",
                "name": one_line(name, 80),
                "unit": "none",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": one_line(" ".join(path.name for path in paths), 120),
        "exporter": f"llmprof {__version__}",
        "activeProfileIndex": 0,
        "shared": {"frames": frames},
        "profiles": profiles,
    }
    out.write_text(json.dumps(document), encoding="utf-8")
    return [out]
