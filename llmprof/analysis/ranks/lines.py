"""What one rank did, and one sort of collective, as numbers."""

from __future__ import annotations

from collections.abc import Mapping

from llmprof.analysis.device.sweep import covered_ns
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.operations import Sort, bus_factor, operation
from llmprof.analysis.ranks.results import CollectiveLine
from llmprof.records import Maybe, Unavailable
from llmprof.runfile.trace.rows import Ints

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


def occupied(member: Member, bounds: Ints) -> tuple[int, int, int]:
    """(communication alone, other work, nothing) between the first and the last bound, ns."""
    first, last = bounds[:1], bounds[-1:]
    whole = covered_ns([(member.start_ns, member.end_ns)], first, last)
    compute = covered_ns([member.other_spans], first, last)
    return int((whole - compute)[0]), int(compute[0]), int((last - first - whole)[0])


def collective_line(
    sort: Sort,
    count: int,
    steps: int,
    transfer_ns: float,
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
        bus = (
            Unavailable(f"nccl-tests give no factor for {op.kind}")
            if factor is None
            else algorithm * factor
        )
    return CollectiveLine(
        name=op.key,
        kind=op.kind,
        count=count,
        per_step=count / steps,
        transfer_us=transfer_ns / 1e3,
        wait_us=wait_ns / 1e3,
        longest_wait_us=longest_ns / 1e3,
        bytes=size,
        algorithm_gb_s=algorithm,
        bus_gb_s=bus,
        fused=op.fused,
    )
