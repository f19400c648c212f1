"""One device's work laid out in time: overlaps counted once, cut at the borders of decode steps.

Idle time is a device's, so each device has a timeline of its own and work of two devices is never
merged into one.

Everything here is integer ns and vectorised, so sums are exact and a million kernels take well
under a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmprof.runfile.activity import GRAPH, SET
from llmprof.runfile.trace.rows import CopyRows, Ints, KernelRows, TraceRows

Spans = tuple[Ints, Ints]
"""(start, end) of pieces of work, ns; in no order, they may overlap."""
WHOLE_GRAPH_NAME = "[CUDA graph, traced as a whole]"
COPY_NAMES = {
    GRAPH: WHOLE_GRAPH_NAME,
    SET: "[memset]",
    0: "[memcpy]",
    1: "[memcpy Host-to-Device]",
    2: "[memcpy Device-to-Host]",
    8: "[memcpy Device-to-Device]",
    9: "[memcpy Host-to-Host]",
    10: "[memcpy Peer-to-Peer]",
    11: "[memcpy Unified Host-to-Device]",
    12: "[memcpy Unified Device-to-Host]",
    13: "[memcpy Unified Device-to-Device]",
}
"""nsys copyKind → the name under which nsys lists it."""


@dataclass(frozen=True, eq=False)
class Work:
    """All device work of one process, kernels first. Equal lengths."""

    start_ns: Ints
    end_ns: Ints
    label: Ints
    """Index into ``names``."""
    step: Ints
    """Decode step, 0 prefill, -1 outside (see ``attribution``)."""
    is_kernel: NDArray[np.bool_]
    kernel_row: Ints
    """Rows of ``KernelRows`` of the kernels, in order."""
    copy_row: Ints
    """Rows of ``CopyRows`` of all else, in order."""
    device: Ints
    whole_graph: NDArray[np.bool_]
    """A CUDA graph that was traced as a whole."""
    names: tuple[str, ...]

    def devices(self) -> tuple[int, ...]:
        """That any of the work ran on, ascending."""
        return tuple(int(number) for number in np.unique(self.device))

    def on(self, device: int) -> Work:
        """What ran on one device; the labels stay."""
        mine = self.device == device
        if mine.all():
            return self
        kernel = self.is_kernel
        return Work(
            start_ns=self.start_ns[mine],
            end_ns=self.end_ns[mine],
            label=self.label[mine],
            step=self.step[mine],
            is_kernel=kernel[mine],
            kernel_row=self.kernel_row[mine[kernel]],
            copy_row=self.copy_row[mine[~kernel]],
            device=self.device[mine],
            whole_graph=self.whole_graph[mine],
            names=self.names,
        )


@dataclass(frozen=True, eq=False)
class Timeline:
    """Who occupies one device from the first to the last bound; what is not covered is idle.

    Pieces are disjoint, ordered and cut at the bounds. Where work overlaps on several streams the
    time belongs to what started first, so pieces add up to the busy time exactly.
    """

    device: int

    bounds_ns: Ints
    """``bounds_ns[i - 1]`` to ``bounds_ns[i]`` is decode step ``i``; steps + 1 values."""
    start_ns: Ints
    end_ns: Ints
    label: Ints
    step: Ints
    """The step that the piece lies in, from 1."""
    names: tuple[str, ...]
    counted: NDArray[np.bool_] | None = None
    """Steps that the pieces are of, where those of others (prefill) are left out; shape (steps,).
    ``None``: all."""

    @property
    def steps(self) -> int:
        return max(0, len(self.bounds_ns) - 1)

    @property
    def count(self) -> int:
        """Steps that count: what a mean is over."""
        return self.steps if self.counted is None else int(np.count_nonzero(self.counted))

    def only(self, counted: NDArray[np.bool_] | None) -> Timeline:
        """Without the pieces, the length and the gaps of the other steps."""
        if counted is None or counted.all():
            return self
        mine = counted[self.step - 1]
        return replace(
            self,
            start_ns=self.start_ns[mine],
            end_ns=self.end_ns[mine],
            label=self.label[mine],
            step=self.step[mine],
            counted=counted,
        )

    def busy_ns(self) -> Ints:
        """Covered time of each step, ns; shape (steps,)."""
        return sums(self.step - 1, self.end_ns - self.start_ns, self.steps)

    def wall_ns(self) -> Ints:
        """Length of each step, ns; 0 of one that does not count; shape (steps,)."""
        length = np.diff(self.bounds_ns)
        return length if self.counted is None else np.where(self.counted, length, 0)


def collect(rows: TraceRows, pid: int, kernel_step: Ints, copy_step: Ints) -> Work:
    """The work of process ``pid`` under one list of names."""
    kernels, copies = rows.kernels, rows.copies
    mine, copied = np.flatnonzero(kernels.pid == pid), np.flatnonzero(copies.pid == pid)
    kernel_label, kernel_names = _kernel_labels(kernels, mine)
    copy_label, copy_names = _copy_labels(copies, copied)
    start = np.concatenate([kernels.start_ns[mine], copies.start_ns[copied]])
    end = np.concatenate([kernels.end_ns[mine], copies.end_ns[copied]])
    return Work(
        start_ns=start,
        end_ns=np.maximum(start, end),  # a damaged row must not make time run backwards
        label=np.concatenate([kernel_label, copy_label + len(kernel_names)]),
        step=np.concatenate([kernel_step[mine], copy_step[copied]]),
        is_kernel=np.arange(len(start)) < len(mine),
        kernel_row=mine,
        copy_row=copied,
        device=np.concatenate([kernels.device[mine], copies.device[copied]]),
        whole_graph=np.concatenate([np.zeros(len(mine), np.bool_), copies.kind[copied] == GRAPH]),
        names=(*kernel_names, *copy_names),
    )


def lay_out(work: Work, bounds_ns: Ints, device: int) -> Timeline:
    """The timeline of one device between the bounds (ascending), at least one."""
    work = work.on(device)
    order = np.argsort(work.start_ns, kind="stable")
    start, end, label = work.start_ns[order], work.end_ns[order], work.label[order]
    covered = np.concatenate([bounds_ns[:1], np.maximum.accumulate(end)[:-1]])[: len(start)]
    start = np.maximum(np.maximum(start, covered), bounds_ns[0])
    end = np.minimum(end, bounds_ns[-1])
    there = end > start
    origin, start, end, step = cut(start[there], end[there], bounds_ns)
    return Timeline(device, bounds_ns, start, end, label[there][origin], step, work.names)


def cut(start: Ints, end: Ints, bounds_ns: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Split intervals that lie within the bounds at every bound inside them.

    Returns (index of the interval, start, end, step) of the pieces, in order; none is empty.
    """
    first = np.searchsorted(bounds_ns, start, "right")
    parts = np.maximum(1, np.searchsorted(bounds_ns, end, "left") - first + 1)
    origin = np.repeat(np.arange(len(start)), parts)
    nth = np.arange(len(origin)) - np.repeat(np.cumsum(parts) - parts, parts)
    step = first[origin] + nth
    begin = np.where(nth == 0, start[origin], bounds_ns[step - 1])
    finish = np.where(nth == parts[origin] - 1, end[origin], bounds_ns[step])
    there = finish > begin  # equal bounds: a step without any length
    return origin[there], begin[there], finish[there], step[there]


def covered_ns(spans: Sequence[Spans], start: Ints, end: Ints) -> Ints:
    """ns of each stretch that lie in at least one of the (start, end) spans."""
    if not spans:
        return np.zeros(len(start), np.int64)
    begins = np.concatenate([span[0] for span in spans])
    ends = np.concatenate([span[1] for span in spans])
    order = np.argsort(begins, kind="stable")
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    begins[1:] = np.maximum(begins[1:], ends[:-1])
    there = ends > begins
    begins, ends = begins[there], ends[there]
    if not len(begins):
        return np.zeros(len(start), np.int64)
    before = np.concatenate([[0], np.cumsum(ends - begins)])

    def upto(times: Ints) -> Ints:
        begun = np.searchsorted(begins, times, "right")
        over = np.maximum(0, ends[np.maximum(begun, 1) - 1] - times)
        found: Ints = before[begun] - np.where(begun > 0, over, 0)
        return found

    return upto(end) - upto(start)


def merged_spans(parts: Iterable[Mapping[int, Spans]]) -> dict[int, Spans]:
    """By device: the spans of all parts, one list behind the other."""
    found: dict[int, list[Spans]] = {}
    for part in parts:
        for device, spans in part.items():
            found.setdefault(device, []).append(spans)
    return {
        device: (np.concatenate([s for s, _ in spans]), np.concatenate([e for _, e in spans]))
        for device, spans in found.items()
    }


def sums(index: Ints, values: Ints, length: int) -> Ints:
    """Sum of ``values`` for each index; exact below 2**53 (104 days in ns)."""
    total = np.bincount(index, weights=values, minlength=length)
    return total.astype(np.int64)


def _kernel_labels(kernels: KernelRows, mine: Ints) -> tuple[Ints, list[str]]:
    """Ids that carry the same text share a label."""
    ids, inverse = np.unique(kernels.name_id[mine], return_inverse=True)
    texts = [kernels.names.get(int(i), f"kernel {i}") for i in ids]
    number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    table = np.array([number[text] for text in texts], np.int64)
    return table[inverse] if len(table) else table, list(number)


def _copy_labels(copies: CopyRows, copied: Ints) -> tuple[Ints, list[str]]:
    kinds, inverse = np.unique(copies.kind[copied], return_inverse=True)
    known = {**COPY_NAMES, **copies.names}
    names = [known.get(int(k), f"[memcpy kind {k}]") for k in kinds]
    return inverse.astype(np.int64), names
