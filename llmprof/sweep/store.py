"""The folder of a sweep: what was asked for, what is done, a run file a point.

sweep.json       the grid, and who made it
points.jsonl     one line a point that ended, appended and synced: what resuming goes by
points.parquet   the same as columns, replaced as a whole
runs/ID.sqlite   run files
work/ID/         of points that are running; removed when a sweep starts again
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from llmprof import __version__
from llmprof.errors import LlmprofError, UsageError
from llmprof.newfiles import alone, write_whole
from llmprof.plaintext import one_line
from llmprof.sweep.grid import Grid, Point
from llmprof.sweep.rows import Row, is_number, is_row, is_text

FILE = "sweep.json"
JOURNAL = "points.jsonl"
PARQUET = "points.parquet"
FORMAT = 1

State = Literal["done", "failed", "impossible"]


@dataclass(frozen=True)
class Ended:
    """How one point ended."""

    point_id: str
    state: State
    """``failed``: it did not run, or one of its engines failed."""
    reason: str = ""
    rows: list[Row] = field(default_factory=list)
    """One an engine; none where nothing ran."""
    seconds: float = 0.0
    node: str = ""
    run_file: str = ""
    """Relative to the sweep's folder, or where ``--runs-at`` says; empty: none was kept."""


class Store:
    """One sweep's folder. One process writes it (``writing``); any number reads.

    Attributes:
        ended: point id → its last outcome.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        self.folder = folder
        self.grid = grid
        self.points = grid.points()
        self.ended: dict[str, Ended] = {}
        self._read_to = 0
        self._journal: int | None = None

    # -- opening ----------------------------------------------------------------------------

    @staticmethod
    def create(folder: Path, grid: Grid) -> Store:
        """Make the folder, or go on with the same sweep in it.

        Raises:
            UsageError: the folder holds another sweep or anything else, or cannot be made.
        """
        name = one_line(str(folder))
        try:
            if (folder / FILE).is_file():
                store = Store.open(folder)
                if store.grid.grid_id != grid.grid_id:
                    raise UsageError(
                        f"{name} holds another sweep ({len(store.points)} points:"
                        f" {_difference(store.grid, grid)}); use another folder with -o"
                    )
                return store
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UsageError(f"{name} exists and is no sweep; use another folder with -o")
            for part in ("runs", "work"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            content = {"format": FORMAT, "llmprof": __version__, "grid": grid.to_dict()}
            write_whole(folder / FILE, json.dumps(content, indent=1) + "\n")
        except OSError as why:
            raise UsageError(f"{name}: cannot be written: {why.strerror or why}") from None
        return Store(folder, grid)

    @staticmethod
    def open(folder: Path, read: bool = True) -> Store:
        """An existing sweep, with all that has ended (``read``), or before ``refresh``.

        Raises:
            UsageError: no sweep, damaged, or of a newer llmprof.
        """
        path = folder / FILE
        name = one_line(str(folder))
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or not isinstance(content.get("grid"), dict):
                raise ValueError("no grid in it")
            if not is_text(content):
                raise ValueError("half a character in it")
            if content.get("format") != FORMAT:
                raise UsageError(
                    f"{name}: a sweep of format {one_line(str(content.get('format')), 20)}, this"
                    f" llmprof reads {FORMAT}"
                )
            grid = Grid.from_dict(content["grid"])
        except FileNotFoundError:
            raise UsageError(f"{name}: no sweep here (no {FILE})") from None
        except (OSError, ValueError) as why:
            raise UsageError(f"{path}: cannot be read: {one_line(str(why), 200)}") from None
        store = Store(folder, grid)
        if read:
            store.refresh()
        return store

    def refresh(self) -> bool:
        """Read what was appended since; a line that is not whole yet is left for later.

        Returns:
            Was there anything new?
        """
        try:
            with (self.folder / JOURNAL).open("rb") as journal:
                journal.seek(self._read_to)
                data = journal.read()
        except FileNotFoundError:
            return False
        except OSError as why:
            raise UsageError(f"{self.folder / JOURNAL}: {why.strerror}") from None
        whole = data.rfind(b"\n") + 1
        known = {point.point_id for point in self.points}
        for line in data[:whole].splitlines():
            found = _ended(line)
            if found is not None and found.point_id in known:
                self.ended[found.point_id] = found
        self._read_to += whole
        return whole > 0

    # -- writing ----------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one that writes; what a killed one has left half-done is cleaned up.

        Raises:
            LlmprofError: another process runs this sweep.
        """
        try:
            with alone(self.folder / ".lock"):
                self.refresh()
                self._cut_torn_line()
                shutil.rmtree(self.folder / "work", ignore_errors=True)
                (self.folder / "work").mkdir()
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._journal = os.open(self.folder / JOURNAL, flags, 0o644)
                try:
                    yield
                finally:
                    os.close(self._journal)
                    self._journal = None
        except BlockingIOError:
            name = one_line(str(self.folder))
            raise LlmprofError(f"{name}: another llmprof runs this sweep") from None

    def put(self, ended: Ended) -> None:
        """Keep how a point ended; it is on the disk when this returns.

        Raises:
            OSError: the disk is full (nothing of the line stays).
        """
        assert self._journal is not None, "put() outside writing()"
        line = json.dumps(asdict(ended), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        size = os.fstat(self._journal).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._journal, left) :]
            os.fsync(self._journal)
        except OSError:
            os.ftruncate(self._journal, size)
            raise
        self.ended[ended.point_id] = ended

    @contextmanager
    def work(self, point: Point) -> Iterator[Path]:
        """A folder of its own for a point that runs; removed at the end."""
        folder = self.folder / "work" / point.point_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep_run(self, point: Point, file: Path) -> str:
        """Move a point's run file to its place; its path in the store, empty without a file."""
        if not file.is_file():
            return ""
        target = self.folder / "runs" / f"{point.point_id}.sqlite"
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
        return str(target.relative_to(self.folder))

    def _cut_torn_line(self) -> None:
        """The process was killed, or the disk full, in the middle of a line."""
        path = self.folder / JOURNAL
        if path.exists() and path.stat().st_size > self._read_to:
            os.truncate(path, self._read_to)

    # -- asking -----------------------------------------------------------------------------

    def left(self, retry_failed: bool = False) -> list[Point]:
        """Points that have not ended, in the grid's order; failed ones too where asked."""
        again = ("failed",) if retry_failed else ()
        return [
            point
            for point in self.points
            if (known := self.ended.get(point.point_id)) is None or known.state in again
        ]

    def run_file(self, point: Point) -> Path | None:
        """Where the run of a point is; ``None``: it has none."""
        known = self.ended.get(point.point_id)
        if known is None or not known.run_file:
            return None
        return self.folder / known.run_file  # an absolute path stays what it is

    def rows(self) -> list[Row]:
        """All rows of all points that ended, in the grid's order."""
        found: list[Row] = []
        for point in self.points:
            known = self.ended.get(point.point_id)
            if known is None:
                continue
            shared = {
                "point": point.point_id,
                "fields": dict(point.fields),
                "repeat": point.repeat,
                "run_file": known.run_file,
            }
            if known.rows:
                found += [{**row, **shared} for row in known.rows]
                continue
            rest = {"state": known.state, "reason": known.reason, "node": known.node}
            found += [{"engine": engine, **rest, **shared} for engine in point.engines]
        return found


def _ended(line: bytes) -> Ended | None:
    """``None``: no line that ``put`` wrote, whole and as it was."""
    try:
        text = line.decode()  # strictly: json.loads lets halves of characters in bytes pass
        found = Ended(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    if "\\u" in text and not is_text(asdict(found)):
        return None  # nowhere else can half a character come from
    texts = (found.point_id, found.reason, found.node, found.run_file)
    whole = (
        all(isinstance(text, str) for text in texts)
        and found.state in get_args(State)
        and is_number(found.seconds)
        and isinstance(found.rows, list)
        and all(is_row(row) for row in found.rows)
    )
    return found if whole else None


def _difference(there: Grid, wanted: Grid) -> str:
    """Where two grids differ first, in words."""
    if there.engines != wanted.engines:
        return f"engines {', '.join(there.engines)}"
    if there.repeat != wanted.repeat:
        return f"repeat {there.repeat}"
    a: Mapping[str, Any] = there.fields
    for name in dict.fromkeys([*a, *wanted.fields]):
        if a.get(name) != wanted.fields.get(name):
            return f"{name} {', '.join(a.get(name, ('not given',)))}"[:120]
    return "in another order"
