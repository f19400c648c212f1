"""A rank as the analysis sees it: one process on one device, and the work that it did there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.naming.categories import COMMUNICATION, OTHER, Rule, categorise
from llmprof.analysis.device.sweep import WHOLE_GRAPH_NAME, Spans, Work, collect
from llmprof.analysis.ranks.matched.operations import Operation, Sort, operation
from llmprof.runfile.trace.rows import ApiRows, Ints, TraceRows


@dataclass(frozen=True, eq=False)
class Member:
    """One rank. Work is ordered by start; times are the rank's own, ns."""

    rank: int
    pid: int
    """As in ``RoundRecord.pid``."""
    device: int
    engine: str
    """Label of the engine that the process belongs to."""
    start_ns: Ints
    end_ns: Ints
    label: Ints
    """Index into ``names``."""
    launch_ns: Ints
    """Start of the call that launched it; -1: not known."""
    names: tuple[str, ...]
    categories: Mapping[int, str]
    """Label → category."""
    bounds_ns: Ints
    """Borders of its own decode steps (``device.attribution``); empty: not known."""
    from_environment: bool = True
    """The rank is what the program said (RANK); else it is the order of the GPUs."""
    counted: NDArray[np.bool_] | None = None
    """Of each of its steps: is it one that means are over (``records.steps``)? ``None``: all."""
    drawn: tuple[Work, Ints] | None = None
    """The same work and its streams as a timeline draws it."""
    communicator: int = 0
    """NCCL's hash of the one that it works with most, equal on all of its ranks; 0: not known."""
    communicator_ranks: int = 0
    """How many ranks that has; 0: not known."""
    payload: Ints | None = None
    """Bytes of each piece that is a collective (0: not known); ``None``: of none."""

    @property
    def name(self) -> str:
        return f"rank {self.rank} · GPU {self.device}"

    @cached_property
    def whole_graphs(self) -> bool:
        """Ran it CUDA graphs that were traced as a whole? What is in them is not known."""
        if WHOLE_GRAPH_NAME not in self.names:
            return False
        return bool((self.label == self.names.index(WHOLE_GRAPH_NAME)).any())

    @property
    def no_collective(self) -> str:
        """Why it has none."""
        if self.whole_graphs:
            return (
                f"CUDA graphs of {self.name} were traced as a whole: whether collectives are in"
                " them is not known (nsys profile --cuda-graph-trace=node shows them)"
            )
        return f"{self.name} ran no collective"

    @cached_property
    def communicates(self) -> NDArray[np.bool_]:
        """Of every piece of work: is it a collective?"""
        table = np.array(
            [self.categories.get(n, OTHER) == COMMUNICATION for n in range(len(self.names))], bool
        )
        return table[self.label] if len(table) else np.zeros(len(self.label), bool)

    @cached_property
    def collectives(self) -> Collectives:
        rows = np.flatnonzero(self.communicates)
        label = self.label[rows]
        payload = np.zeros_like(rows) if self.payload is None else self.payload[rows]
        sorts, number = np.unique(np.stack([label, payload]), axis=1, return_inverse=True)
        known = [(operation(self.names[int(n)]), int(size)) for n, size in sorts.T]
        # Several kernels may be one sort.
        keys = tuple(dict.fromkeys(Sort(op.key, size) for op, size in known))
        place = np.array([keys.index(Sort(op.key, size)) for op, size in known], np.int64)
        return Collectives(
            rows,
            self.start_ns[rows],
            self.end_ns[rows],
            place[number.reshape(-1)] if len(rows) else np.zeros(0, np.int64),
            keys,
            tuple(op for op, _ in known),
        )

    @cached_property
    def other_spans(self) -> Spans:
        """(start, end) of all work that is no collective."""
        rest = ~self.communicates
        return self.start_ns[rest], self.end_ns[rest]


@dataclass(frozen=True, eq=False)
class Collectives:
    """The collectives of one rank in the order of their starts. Equal lengths."""

    row: Ints
    """Row of ``Member``'s work."""
    start_ns: Ints
    end_ns: Ints
    key: Ints
    """Index into ``keys``."""
    keys: tuple[Sort, ...]
    operations: tuple[Operation, ...]

    def __len__(self) -> int:
        return len(self.row)


def member(
    rows: TraceRows,
    pid: int,
    device: int,
    rank: int,
    engine: tuple[str, str],
    rules: Sequence[Rule],
    bounds_ns: Ints,
    from_environment: bool = True,
    counted: NDArray[np.bool_] | None = None,
) -> Member:
    """A rank from the rows of its process.

    Args:
        engine: label and name (some rules are an engine's).
    """
    nowhere = np.zeros(len(rows.kernels), np.int64), np.zeros(len(rows.copies), np.int64)
    work = collect(rows, pid, *nowhere).on(device)
    correlation = np.concatenate(
        [rows.kernels.correlation[work.kernel_row], rows.copies.correlation[work.copy_row]]
    )
    streams = np.concatenate(
        [rows.kernels.stream[work.kernel_row], rows.copies.stream[work.copy_row]]
    )
    order = np.argsort(work.start_ns, kind="stable")
    names = dict(enumerate(work.names))
    return Member(
        rank=rank,
        pid=pid,
        device=device,
        engine=engine[0],
        start_ns=work.start_ns[order],
        end_ns=work.end_ns[order],
        label=work.label[order],
        launch_ns=_launches(rows.api, correlation)[order],
        payload=_payload(rows, work)[order],
        names=work.names,
        categories=categorise(names, engine[1], rules),
        bounds_ns=bounds_ns,
        from_environment=from_environment,
        counted=counted,
        drawn=(work, streams),
    )


def _payload(rows: TraceRows, work: Work) -> Ints:
    """Bytes of each piece of work that is a collective, 0 where the trace does not say."""
    sizes = rows.kernels.collective_bytes
    if len(sizes) != len(rows.kernels):
        sizes = np.zeros(len(rows.kernels), np.int64)
    return np.concatenate([sizes[work.kernel_row], np.zeros(len(work.copy_row), np.int64)])


def _launches(api: ApiRows, correlation: Ints) -> Ints:
    """Start of the call of each correlation, -1 where there is none."""
    if not len(api):
        return np.full(len(correlation), -1, np.int64)
    order = np.argsort(api.correlation, kind="stable")
    known, start = api.correlation[order], api.start_ns[order]
    at = np.minimum(np.searchsorted(known, correlation), len(known) - 1)
    return np.where((known[at] == correlation) & (correlation != 0), start[at], -1)
