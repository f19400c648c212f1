"""Recorded runs by their small tables: what was run, what came out, how long ago."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmprof.analysis.timing.compare import compare_to_first
from llmprof.analysis.timing.steps import engine_steps
from llmprof.analysis.view.frames.frame import what_ran
from llmprof.errors import LlmprofError
from llmprof.plaintext import one_line
from llmprof.records import RunData, Unavailable
from llmprof.runfile.reader import RunFileReader

MOST = 50


@dataclass(frozen=True)
class Recent:
    """One file. Texts are printable."""

    path: Path
    age_s: float
    what: str
    """Model, bits, GPU; empty where the file does not say."""
    engines: tuple[str, ...]
    verdict: str
    """Who is faster, or tok/s; of a file that cannot be read why."""
    readable: bool = True
    sweep: bool = False
    """A folder of points, not one run."""


def run_files(folders: Iterable[Path], most: int = MOST) -> list[Path]:
    """Run files in these folders, the newest first; a folder that cannot be read has none."""
    found: dict[Path, float] = {}
    for folder in folders:
        try:
            entries = list(folder.iterdir())
        except OSError:
            continue
        for path in entries:
            try:
                if path.suffix == ".sqlite" and path.is_file() and path.stat().st_size:
                    found[path.resolve()] = path.stat().st_mtime
            except OSError:
                continue
    return sorted(found, key=lambda path: -found[path])[:most]


def described(paths: Iterable[Path], now_s: float | None = None) -> Iterator[Recent]:
    """Each of them, read when it is asked for; no file stops the others."""
    now = time.time() if now_s is None else now_s
    for path in paths:
        try:
            age = max(0.0, now - path.stat().st_mtime)
            with RunFileReader(path) as reader:
                data = reader.run_data()
            engines = tuple(one_line(e.label, 30) for e in data.engines)
            yield Recent(path, age, what_ran(data), engines, one_line(_verdict(data), 200))
        except (LlmprofError, OSError) as why:
            text = why.strerror if isinstance(why, OSError) else str(why)
            text = (text or "unreadable").removeprefix(f"{path}: ")
            yield Recent(path, 0.0, "", (), one_line(text, 200), readable=False)


def age_words(seconds: float) -> str:
    """``5 min``, ``3 h``, ``12 d``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _verdict(data: RunData) -> str:
    if data.info.state != "finished":
        return f"{data.info.state}: {data.info.message}" if data.info.message else data.info.state
    if data.info.source != "driven":
        return f"{data.info.source}, {len(data.engines)} processes"
    pairs = compare_to_first(data)
    if pairs:
        ratios = [(p.tok_s_ratio.value, p) for p in pairs]
        known = [(v, p) for v, p in ratios if not isinstance(v, Unavailable)]
        return max(known, key=lambda item: item[0])[1].verdict if known else pairs[0].verdict
    for engine in data.engines:
        rate = engine_steps(data, engine).tok_s.value
        if not isinstance(rate, Unavailable):
            return f"{rate:.1f} tok/s"
    return "nothing was timed"
