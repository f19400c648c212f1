"""Host stacks as a speedscope file (https://www.speedscope.app/file-format-schema.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmprof import __version__
from llmprof.analysis.host.frames import label
from llmprof.exports.formats import Progress
from llmprof.exports.stacks.rows import Stacks, engine_stacks
from llmprof.plaintext import one_line
from llmprof.records.steps import (
    StepChoice,
)


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """One file with a profile for each engine, all decode steps.

    Raises:
        UsageError: no engine has host stacks.
    """
    title = " ".join(path.name for path in files)
    document = speedscope(title, engine_stacks(files, progress, steps))
    out.write_text(json.dumps(document), encoding="utf-8")


def speedscope(title: str, engines: Iterable[tuple[str, Stacks]]) -> dict[str, Any]:
    """A weight is a sample's share: 1, or the part of it that lay in gaps."""
    frames: list[dict[str, Any]] = []
    index: dict[str, int] = {}
    profiles = []
    for name, stacks in engines:
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
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": one_line(title, 120),
        "exporter": f"llmprof {__version__}",
        "activeProfileIndex": 0,
        "shared": {"frames": frames},
        "profiles": profiles,
    }
