"""Sweeps that are there: what was swept, how much of it is done, how long ago."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from llmprof.analysis.view.recent import MOST, Recent, described, run_files
from llmprof.errors import LlmprofError
from llmprof.plaintext import one_line
from llmprof.sweep.store import FILE, JOURNAL, Store


def is_sweep(folder: Path) -> bool:
    """Does the folder hold a sweep?"""
    try:
        return (folder / FILE).is_file()
    except OSError:
        return False


def everything(folders: Iterable[Path], most: int = MOST) -> Iterable[Recent]:
    """Run files and sweeps of these folders, the newest first, each read when it is asked for."""
    places = list(folders)
    files = {path: path.stat().st_mtime for path in run_files(places, most) if path.exists()}
    found = {path: changed for folder in places for path, changed in _sweeps(folder)}
    found.update(files)
    for path in sorted(found, key=lambda path: -found[path])[:most]:
        if path in files:
            yield from described([path])
        else:
            yield _described(path, found[path])


def _sweeps(folder: Path) -> list[tuple[Path, float]]:
    """(sweep in the folder, when its last point ended)."""
    try:
        inside = [path for path in folder.iterdir() if path.is_dir() and is_sweep(path)]
        return [(path.resolve(), _changed(path)) for path in inside]
    except OSError:
        return []


def _changed(path: Path) -> float:
    journal = path / JOURNAL
    return (journal if journal.exists() else path / FILE).stat().st_mtime


def _described(path: Path, changed: float) -> Recent:
    age = max(0.0, time.time() - changed)
    try:
        store = Store.open(path)
    except LlmprofError as why:
        text = str(why).removeprefix(f"{path}: ")
        return Recent(path, age, "", (), one_line(text, 200), readable=False, sweep=True)
    done = sum(ended.state == "done" for ended in store.ended.values())
    over = ", ".join(store.grid.axes) or "one point"
    failed = len(store.ended) - done
    words = f"sweep over {over}: {done} of {len(store.points)} points"
    words += f", {failed} failed" if failed else ""
    engines = tuple(one_line(name, 30) for name in store.grid.engines)
    return Recent(
        path, age, f"{len(store.points)} points", engines, one_line(words, 200), sweep=True
    )
