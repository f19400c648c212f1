"""Which points can share a load, and in which order they run so that they do."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmprof.sweep.fields import FIELDS
from llmprof.sweep.grid import Point

DEFAULT_CONTEXT, DEFAULT_BATCH, DEFAULT_DECODE = 128, 1, 64
"""Of a point that has no such field, as ``llmprof`` itself takes them."""


@dataclass(frozen=True)
class Load:
    """What points with equal ``key`` ask their engines to load.

    Attributes:
        key: engines, model, seed, trace level and repeat; repeats are there to see what another
            process changes, so each loads for itself.
        most_batch, most_positions: the largest shape among all points of the sweep that share it,
            whether they have ended or not: a sweep that goes on loads what it had loaded before.
    """

    key: str
    most_batch: int
    most_positions: int


def loads(points: Sequence[Point]) -> dict[str, Load]:
    """Point id → its load."""
    keys = {point.point_id: _key(point) for point in points}
    most: dict[str, tuple[int, int]] = {}
    for point in points:
        key = keys[point.point_id]
        batch, positions = most.get(key, (0, 0))
        most[key] = max(batch, _batch(point)), max(positions, _positions(point))
    return {name: Load(key, *most[key]) for name, key in keys.items()}


def _key(point: Point) -> str:
    fixed = {k: v for k, v in point.fields.items() if k not in FIELDS or not FIELDS[k].shape}
    return repr((point.engines, sorted(fixed.items()), point.repeat))


def _batch(point: Point) -> int:
    return int(point.fields.get("batch", DEFAULT_BATCH))


def _positions(point: Point) -> int:
    context = int(point.fields.get("context", DEFAULT_CONTEXT))
    return context + int(point.fields.get("decode-len", DEFAULT_DECODE)) + 1


class Todo:
    """The points that are left; may be asked from several threads."""

    def __init__(self, points: Sequence[Point], by_id: Mapping[str, Load]) -> None:
        self._by_id = by_id
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Point]] = {}
        """By load, each in the grid's order."""
        for point in points:
            self._waiting.setdefault(self.load(point).key, []).append(point)

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def load(self, point: Point) -> Load:
        return self._by_id[point.point_id]

    def take(self, loaded: str) -> Point | None:
        """The next point for one whose engines were loaded for key ``loaded`` (empty: none).

        Where none of that load is left, the grid's order decides.
        """
        with self._lock:
            if not self._waiting:
                return None
            key = loaded if loaded in self._waiting else self._first()
            points = self._waiting[key]
            point = points.pop(0)
            if not points:
                del self._waiting[key]
            return point

    def put_back(self, point: Point) -> None:
        """It was not run after all: it is the next one."""
        with self._lock:
            self._waiting.setdefault(self.load(point).key, []).insert(0, point)

    def _first(self) -> str:
        return next(iter(self._waiting))
