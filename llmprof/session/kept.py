"""Workers that outlive a run: runs of the same engines, one after another, load once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmprof.newfiles import OwnFolder
from llmprof.session.client import WorkerClient

MOST_SPOOL_BYTES = 1 << 30
"""A worker's spool holds the traces of all its runs: past this the next run starts another."""


@dataclass
class Held:
    """A worker with what must live as long as it."""

    client: WorkerClient
    folders: list[OwnFolder]
    spool: Path | None
    load_ns: int
    """Of its one load."""
    runs: int = 1
    """So many have used it."""

    def end(self) -> None:
        self.client.close()
        for folder in self.folders:
            folder.cleanup()


@dataclass
class KeptWorkers:
    """What one run of a series leaves for the next. All its runs must be of one process.

    Args:
        folder: on a disk, for what is as large as a trace.
        most_batch, most_positions: the largest shape that any run of the series will have.
    """

    folder: Path
    most_batch: int = 0
    most_positions: int = 0
    serial: int = 0
    """The last round: a worker's spool knows its rounds by number, so none comes twice."""
    copies: dict[str, Any] | None = None
    """What a copy reached on each GPU before the first run loaded anything."""
    refused: dict[str, str] = field(default_factory=dict)
    """Label of an engine → why it is loaded for every run."""
    _held: dict[Hashable, Held] = field(default_factory=dict)

    def take(self, key: Hashable) -> Held | None:
        """The worker that was kept under ``key``; it is the caller's now."""
        return self._held.pop(key, None)

    def put(self, key: Hashable, held: Held) -> None:
        """Keep a worker that is parked; one that was kept under ``key`` ends."""
        if (before := self.take(key)) is not None:
            before.end()
        if held.spool is not None and _size(held.spool) > MOST_SPOOL_BYTES:
            held.end()
        else:
            self._held[key] = held

    def drop(self) -> bool:
        """End all that are kept; false: there was none."""
        held, self._held = self._held, {}
        for one in held.values():
            one.end()
        return bool(held)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # CUPTI could not be started, so there is no spool
