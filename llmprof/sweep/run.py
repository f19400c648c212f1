"""The loop of a sweep: what is left goes to the executor, what ends goes to the store."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmprof.errors import LlmprofError
from llmprof.plaintext import one_line
from llmprof.sweep import columns
from llmprof.sweep.forecast import Forecast
from llmprof.sweep.grid import Point
from llmprof.sweep.store import PARQUET, Ended, Store

REWRITE_S = 60.0
"""``points.parquet`` is at most that much older than the journal while a sweep runs."""
FULL_BYTES = 8 << 20
"""A point that failed with less free than this has failed for that."""


class Executor(Protocol):
    """Where points run."""

    @property
    def words(self) -> str: ...

    def run(
        self,
        points: Sequence[Point],
        store: Store,
        tell: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> Iterator[Ended]:
        """Outcomes as they come, each point once; those that were stopped have none."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Summary:
    """How many points are in which state now."""

    done: int
    failed: int
    impossible: int
    left: int
    interrupted: bool


def sweep(
    store: Store,
    executor: Executor,
    found: Sequence[Forecast],
    *,
    tell: Callable[[str], None],
    stop: Callable[[], bool],
    retry_failed: bool = False,
) -> Summary:
    """Run what is left of the sweep.

    Args:
        found: of the points; impossible ones are kept with their reason and not run.

    Raises:
        LlmprofError: another process runs this sweep, or the disk is full. All that has ended is
            kept.
    """
    with store.writing():
        refused = {f.point.point_id: f.impossible for f in found if f.impossible}
        todo = []
        for point in store.left(retry_failed):
            if why := refused.get(point.point_id):
                _put(store, Ended(point.point_id, "impossible", why))
            else:
                todo.append(point)
        _loop(store, executor, todo, tell, stop)
    return summary(store, stop())


def summary(store: Store, interrupted: bool = False) -> Summary:
    states = [ended.state for ended in store.ended.values()]
    return Summary(
        states.count("done"),
        states.count("failed"),
        states.count("impossible"),
        len(store.points) - len(states),
        interrupted,
    )


def _loop(
    store: Store,
    executor: Executor,
    todo: Sequence[Point],
    tell: Callable[[str], None],
    stop: Callable[[], bool],
) -> None:
    points = {point.point_id: point for point in store.points}
    written = begin = time.monotonic()
    count = 0
    try:
        for ended in executor.run(todo, store, tell, stop):
            if ended.state == "failed" and _full(store):
                raise LlmprofError(_full_text(store, ended.reason))
            _put(store, ended)
            count += 1
            left_s = (time.monotonic() - begin) / count * (len(todo) - count)
            tell(_line(points[ended.point_id], ended, count, len(todo), left_s))
            if time.monotonic() - written > REWRITE_S:
                columns.write(store.rows(), store.folder / PARQUET)
                written = time.monotonic()
    finally:
        try:
            columns.write(store.rows(), store.folder / PARQUET)
        except OSError as why:
            if not _full(store):
                raise
            raise LlmprofError(_full_text(store, why.strerror or "")) from None


def _put(store: Store, ended: Ended) -> None:
    try:
        store.put(ended)
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LlmprofError(_full_text(store, why.strerror or "")) from None
        raise LlmprofError(f"{store.folder}: cannot be written: {why.strerror}") from None


def _full(store: Store) -> bool:
    return shutil.disk_usage(store.folder).free < FULL_BYTES


def _full_text(store: Store, reason: str) -> str:
    return (
        f"{one_line(str(store.folder))}: the disk is full ({one_line(reason, 120)});"
        f" {len(store.ended)} of {len(store.points)} points are kept: make room and run the same"
        " command again"
    )


def _line(point: Point, ended: Ended, count: int, total: int, left_s: float) -> str:
    """``3/12  context 1k · batch 2  torch 24.1, llamacpp 83.0 tok/s  8.2 s  left 2 min``."""
    where = f"  on {ended.node}" if ended.node else ""
    if ended.state == "done":
        rates = [
            f"{row['engine']} {row['tok_s']:.1f}" if row["tok_s"] else f"{row['engine']} n/a"
            for row in ended.rows
        ]
        result = f"{', '.join(rates)} tok/s"
    else:
        result = f"{ended.state}: {ended.reason}"
    left = f"  left about {duration(left_s)}" if count < total else ""
    return one_line(
        f"{count}/{total}  {point.words}  {result}  {ended.seconds:.1f} s{where}{left}", 300
    )


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
