"""What one rank did, and one sort of collective, as numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.sweep import Spans, covered_ns
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.operations import Sort, bus_factor, operation
from llmprof.analysis.ranks.results import CollectiveLine, Occupied
from llmprof.records import Maybe, Unavailable
from llmprof.runfile.trace.rows import Ints

QUICKEST_PERCENT = 5
"""Of the collectives of one sort: how long the quickest take. Where one rank alone was recorded it
stands for a transfer without waiting: on two H100s that was 6.3 µs where both ranks' traces gave
6.5."""
NO_BYTES = Unavailable("the trace does not say how many bytes its collectives move")


def payload(sort: Sort, sorts: tuple[Sort, ...], bytes_of: Mapping[str, int]) -> int | Unavailable:
    """Bytes of one collective: as the trace says, or by the model's shape, where all of its kind
    are of one sort."""
    if sort.bytes:
        return sort.bytes
    kinds = [operation(one.key).kind for one in sorts]
    kind = operation(sort.key).kind
    known = kind in bytes_of and kinds.count(kind) == 1
    return bytes_of[kind] if known else NO_BYTES


def occupied(
    member: Member, bounds: Ints, seen: NDArray[np.bool_], wait: Spans, transfer: Spans
) -> Occupied:
    """Of the steps that are ``seen``, each moment counted once whatever ran at the same time.

    Args:
        bounds: borders of the steps on the member's own clock, shape (steps + 1,).
        seen: shape (steps,), at least one.
        wait, transfer: parts of its collectives on its own clock. Where one waits and another
            transfers, it transfers.
    """
    begin, end = bounds[:-1][seen], bounds[1:][seen]
    other = member.other_spans

    def covered(*spans: Spans) -> int:
        return int(covered_ns([other, *spans], begin, end).sum())

    compute, moving = covered(), covered(transfer)
    split, whole = covered(transfer, wait), covered((member.start_ns, member.end_ns))
    unit = len(begin) * 1e6
    return Occupied(
        exposed_ms=(whole - compute) / unit,
        exposed_transfer_ms=(moving - compute) / unit,
        exposed_wait_ms=(split - moving) / unit,
        exposed_unsplit_ms=(whole - split) / unit,
        compute_ms=compute / unit,
        idle_ms=(int((end - begin).sum()) - whole) / unit,
    )


def without(spans: Spans, cut: Spans) -> Spans:
    """What lies in at least one of the spans and in none of the others: disjoint and ordered."""
    edge = np.unique(np.concatenate([*spans, *cut]))

    def inside(starts: Ints, ends: Ints) -> NDArray[np.bool_]:
        begun = np.searchsorted(np.sort(starts), edge, "right")
        found: NDArray[np.bool_] = begun > np.searchsorted(np.sort(ends), edge, "right")
        return found

    there = (inside(*spans) & ~inside(*cut))[:-1]
    return edge[:-1][there], edge[1:][there]


def collective_line(
    sort: Sort,
    count: int,
    steps: int,
    transfer_ns: float,
    quickest_ns: float,
    wait_ns: float,
    longest_ns: float,
    size: int | Unavailable,
    world: int,
) -> CollectiveLine:
    op = operation(sort.key)
    algorithm: Maybe
    bus: Maybe
    if isinstance(size, Unavailable):
        algorithm = bus = size
    elif transfer_ns <= 0:
        algorithm = bus = Unavailable("its transfer is not longer than 0")
    else:
        algorithm = size / transfer_ns  # bytes a ns are GB/s
        factor = bus_factor(op.kind, world)
        none = f"nccl-tests give no factor for {op.kind}"
        if world < 2:
            none = "how many ranks there are is not known"
        bus = Unavailable(none) if factor is None else algorithm * factor
    return CollectiveLine(
        name=op.key,
        kind=op.kind,
        count=count,
        per_step=count / steps,
        algorithm=op.algorithm,
        transfer_us=transfer_ns / 1e3,
        quickest_us=quickest_ns / 1e3,
        wait_us=wait_ns / 1e3,
        longest_wait_us=longest_ns / 1e3,
        bytes=size,
        algorithm_gb_s=algorithm,
        bus_gb_s=bus,
        fused=op.fused,
    )
