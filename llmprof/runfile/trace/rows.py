"""Bulk rows of a traced pass as numpy columns: what the writer takes and the reader gives.

All columns of one table have equal length. Times are int64 ns since the start of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmprof.runfile.activity import Tally

Ints = NDArray[np.int64]


def _none() -> Ints:
    return np.empty(0, np.int64)


@dataclass
class KernelRows:
    """One row a kernel execution, ordered by ``start_ns``."""

    start_ns: Ints = field(default_factory=_none)
    end_ns: Ints = field(default_factory=_none)
    pid: Ints = field(default_factory=_none)
    device: Ints = field(default_factory=_none)
    context: Ints = field(default_factory=_none)
    stream: Ints = field(default_factory=_none)
    correlation: Ints = field(default_factory=_none)
    """Unique over the file; all kernels of one graph launch share the launch's."""
    name_id: Ints = field(default_factory=_none)
    """Key into ``names``."""
    grid_x: Ints = field(default_factory=_none)
    grid_y: Ints = field(default_factory=_none)
    grid_z: Ints = field(default_factory=_none)
    block_x: Ints = field(default_factory=_none)
    block_y: Ints = field(default_factory=_none)
    block_z: Ints = field(default_factory=_none)
    registers: Ints = field(default_factory=_none)
    static_shared: Ints = field(default_factory=_none)
    dynamic_shared: Ints = field(default_factory=_none)
    graph_node: Ints = field(default_factory=_none)
    """Graph node id, 0 for a kernel launched on its own."""
    graph: Ints = field(default_factory=_none)
    collective_bytes: Ints = field(default_factory=_none)
    """What a collective moves, as nccl-tests count it; 0: not known, or no collective."""
    names: dict[int, str] = field(default_factory=dict)
    """``name_id`` → demangled name (untrusted text)."""

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass
class CopyRows:
    """Device work that is no kernel, ordered by ``start_ns``: memory copies and sets, CUDA graphs
    that were traced as a whole, and what is known by the columns of its table alone."""

    start_ns: Ints = field(default_factory=_none)
    end_ns: Ints = field(default_factory=_none)
    pid: Ints = field(default_factory=_none)
    device: Ints = field(default_factory=_none)
    context: Ints = field(default_factory=_none)
    stream: Ints = field(default_factory=_none)
    correlation: Ints = field(default_factory=_none)
    bytes: Ints = field(default_factory=_none)
    kind: Ints = field(default_factory=_none)
    """nsys copyKind (1 host-to-device, 2 device-to-host, 8 device-to-device…); -1 is a memset, -2 a
    whole graph (``runfile.activity``)."""
    graph_node: Ints = field(default_factory=_none)
    names: dict[int, str] = field(default_factory=dict)
    """Kind → name, for kinds that are named after their table (untrusted text)."""

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass
class ApiRows:
    """CUDA runtime and driver calls (``--trace full``), ordered by ``start_ns``."""

    start_ns: Ints = field(default_factory=_none)
    end_ns: Ints = field(default_factory=_none)
    pid: Ints = field(default_factory=_none)
    tid: Ints = field(default_factory=_none)
    correlation: Ints = field(default_factory=_none)
    event_class: Ints = field(default_factory=_none)
    """0 runtime, 1 driver."""
    name_id: Ints = field(default_factory=_none)
    names: dict[int, str] = field(default_factory=dict)
    result: Ints = field(default_factory=_none)
    """What the call returned, 0: success; empty where it is not known."""

    def __len__(self) -> int:
        return len(self.start_ns)


@dataclass
class TraceRows:
    """All bulk rows of one traced round (or of one process between two times)."""

    kernels: KernelRows = field(default_factory=KernelRows)
    copies: CopyRows = field(default_factory=CopyRows)
    api: ApiRows = field(default_factory=ApiRows)
    complete_ns: int | None = None
    """Where there were more rows than were asked for: what begins up to then is all here."""
    later: Ints = field(default_factory=_none)
    """Correlations of work that began within a second after the stretch that was asked for."""
    unread: dict[str, int] = field(default_factory=dict)
    """Table that may hold device work and is not read → its rows in that stretch."""
    tallies: tuple[Tally, ...] = ()
    """What became of every row of the tables that are read."""

    def until(self, end_ns: int) -> TraceRows:
        """Only what begins by ``end_ns``, which becomes ``complete_ns``."""
        return replace(
            self,
            kernels=_until(self.kernels, end_ns),
            copies=_until(self.copies, end_ns),
            api=_until(self.api, end_ns),
            complete_ns=end_ns,
        )

    def split_threads(self, tids: tuple[int, ...]) -> tuple[TraceRows, TraceRows]:
        """Without the calls of these threads and the work that they launched (by correlation), and
        those alone."""
        theirs = np.isin(self.api.tid, tids)
        launched = np.unique(self.api.correlation[theirs])
        launched = launched[launched != 0]
        kernels = np.isin(self.kernels.correlation, launched)
        copies = np.isin(self.copies.correlation, launched)
        parts = [
            replace(
                self,
                kernels=_kept(self.kernels, kernels == alone),
                copies=_kept(self.copies, copies == alone),
                api=_kept(self.api, theirs == alone),
            )
            for alone in (False, True)
        ]
        return parts[0], parts[1]


Rows = TypeVar("Rows", KernelRows, CopyRows, ApiRows)


def _kept(rows: Rows, mask: NDArray[np.bool_]) -> Rows:
    kept = {}
    for f in fields(rows):
        column = getattr(rows, f.name)
        if f.name != "names" and len(column) == len(mask):
            kept[f.name] = column[mask]
    return replace(rows, **kept)


def _until(rows: Rows, end_ns: int) -> Rows:
    count = int(np.searchsorted(rows.start_ns, end_ns, "right"))
    cut = {f.name: getattr(rows, f.name)[:count] for f in fields(rows) if f.name != "names"}
    return replace(rows, **cut)


@dataclass
class PmColumns:
    """PM samples of one round, oldest first; % of the sustained peak, NaN: not counted."""

    start_ns: Ints
    end_ns: Ints
    dram_pct: NDArray[np.float64]
    dram_read_pct: NDArray[np.float64]
    sm_active_pct: NDArray[np.float64]
    further: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """``dram_write_pct``, ``l2_pct``, ``l2_hit_pct``, ``tensor_pct``, where they were counted."""
