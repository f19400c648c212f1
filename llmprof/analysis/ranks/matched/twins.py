"""Processes that run the same kernels in the same order and share no collective in the trace.

Data-parallel ranks, or a stretch of a trace between two collectives: nobody is seen waiting, so
nothing can be said of who waits for whom. What can be seen is how far apart they are: the k-th
kernel or copy of one against the k-th of the others, which is the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmprof.analysis.ranks.matched.members import Member
from llmprof.runfile.trace.rows import Ints

LEAST_KERNELS = 50
ALIKE = 0.95
"""Of the kernels of each process must have a partner of the same name in the same place."""
SHIFTS = 64
"""One recording may begin so many kernels before the other."""
CELLS = 200


@dataclass(frozen=True)
class SkewLine:
    """One process, against the first one to come at each kernel."""

    rank: int
    name: str
    pid: int
    device: int
    behind_us: float
    """Median."""
    behind_95_us: float
    behind_most_us: float
    first: float
    """Share of the kernels at which it was the first."""


@dataclass(frozen=True, eq=False)
class SkewReport:
    """Processes of one sort, one on each GPU."""

    title: str
    ranks: tuple[SkewLine, ...]
    kernels: int
    """That all of them ran in the same order."""
    left_out: int
    """Kernels of the longest list without a partner."""
    behind_ns: Ints
    """Shape (ranks, cells): median, over kernels in equal parts from first to last."""
    words: str
    notes: tuple[str, ...]


FOUND_NOTES = (
    "ranks are numbered by GPU: the program did not say them",
    "copies of one server that know nothing of each other look the same",
)
"""Of a group that nobody named."""


def twins(members: Sequence[Member], notes: tuple[str, ...] = FOUND_NOTES) -> list[SkewReport]:
    """Groups among processes (or GPUs of one) without collectives; times must be on one clock."""
    rest = [m for m in members if len(m.label) >= LEAST_KERNELS and not len(m.collectives)]
    found = []
    while rest:
        first, *others = rest
        group, shifts, rest = [first], [0], []
        for other in others:
            shift = None if other.device in {m.device for m in group} else _shift(first, other)
            if shift is None:
                rest.append(other)
            else:
                group.append(other)
                shifts.append(shift)
        if len(group) > 1:
            found.append(_report(group, shifts, notes))
    return found


def _shift(a: Member, b: Member) -> int | None:
    """So many of ``a``'s kernels come before ``b``'s first; ``None``: they are not alike."""
    if min(len(a.label), len(b.label)) < ALIKE * max(len(a.label), len(b.label)):
        return None
    numbers = {name: n for n, name in enumerate(dict.fromkeys((*a.names, *b.names)))}
    one = np.array([numbers[name] for name in a.names], np.int64)[a.label]
    two = np.array([numbers[name] for name in b.names], np.int64)[b.label]
    best, found = 0.0, None
    for shift in sorted(range(-SHIFTS, SHIFTS + 1), key=abs):
        first, last = max(0, shift), min(len(one), len(two) + shift)
        if last <= first:
            continue
        same = np.count_nonzero(one[first:last] == two[first - shift : last - shift])
        share = float(same / max(len(one), len(two)))
        if share > best:
            best, found = share, shift
        if share == 1.0:
            break
    return found if best >= ALIKE else None


def _report(group: Sequence[Member], shifts: Sequence[int], notes: tuple[str, ...]) -> SkewReport:
    first = max(0, *shifts)
    last = min(len(m.label) + shift for m, shift in zip(group, shifts, strict=True))
    pieces = [m.start_ns[first - s : last - s] for m, s in zip(group, shifts, strict=True)]
    names = [
        np.array(m.names, object)[m.label[first - s : last - s]]
        for m, s in zip(group, shifts, strict=True)
    ]
    same = np.all([names[0] == other for other in names[1:]], axis=0)
    start = np.stack(pieces)[:, same]
    behind = start - start.min(0)
    lines = [
        SkewLine(
            rank=rank,
            name=f"rank {rank} · GPU {m.device}",
            pid=m.pid,
            device=m.device,
            behind_us=float(np.median(late)) / 1e3,
            behind_95_us=float(np.percentile(late, 95)) / 1e3,
            behind_most_us=float(late.max()) / 1e3,
            first=float((late == 0).mean()),
        )
        for rank, (m, late) in enumerate(zip(group, behind, strict=True))
    ]
    cells = np.array_split(behind, min(CELLS, behind.shape[1]), axis=1)
    most = max(lines, key=lambda line: line.behind_us)
    spread = behind.max(0) / 1e3
    words = (
        f"no collective is in the trace, so who waits for whom is not known; {behind.shape[1]}"
        f" kernels and copies run in the same order on {len(group)} GPUs and begin"
        f" {float(np.median(spread)):.1f} µs apart (median; 95 %: {np.percentile(spread, 95):.1f},"
        f" most {spread.max():.1f}); {most.name} is behind by {most.behind_us:.1f} µs in the median"
    )
    return SkewReport(
        title=", ".join(dict.fromkeys(m.engine for m in group)),
        ranks=tuple(lines),
        kernels=behind.shape[1],
        left_out=max(len(m.label) for m in group) - behind.shape[1],
        behind_ns=np.stack([np.median(c, axis=1) for c in cells], 1).astype(np.int64),
        words=words,
        notes=notes,
    )
