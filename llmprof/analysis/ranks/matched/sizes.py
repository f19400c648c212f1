"""How many bytes each collective of a recorded program moved, from the calls that NCCL described.

A kernel that was launched on its own belongs to the one call that its thread made since it launched
the collective before. Several calls in between were fused into one kernel (a group of NCCL): then
its bytes are not known. Kernels of CUDA graphs are replayed without a call; they belong to the
calls that no other kernel claims, which were made while graphs were captured, and are of one size
where all of those are.
"""

from __future__ import annotations

import numpy as np

from llmprof.analysis.ranks.matched.operations import operation
from llmprof.runfile.trace.collective_calls import CollectiveCalls
from llmprof.runfile.trace.rows import Ints, TraceRows

_OF_ALL = frozenset({"AllGather", "ReduceScatter", "AlltoAll", "AllToAll"})
"""NCCL says one rank's part, nccl-tests count all ranks' (doc/PERFORMANCE.md)."""
_KINDS = {"AlltoAll": "AllToAll", "Send": "SendRecv", "Recv": "SendRecv"}
"""NCCL's function → ``Operation.kind`` of its kernel, where they differ."""


def main_communicator(calls: CollectiveCalls) -> tuple[int, int]:
    """The one of most calls: NCCL's hash, and how many ranks it has (0: not known)."""
    known = calls.communicator[calls.communicator >= 0]
    if not len(known):
        return 0, 0
    most = int(np.bincount(known).argmax())
    return calls.communicators[most], calls.ranks[most]


def collective_sizes(rows: TraceRows, calls: CollectiveCalls) -> Ints:
    """Bytes of each kernel as nccl-tests count them; 0: not known, or no collective."""
    kernels = rows.kernels
    found = np.zeros(len(kernels), np.int64)
    kinds = {
        number: operation(name).kind for number, name in kernels.names.items() if "nccl" in name
    }
    mine = np.flatnonzero(np.isin(kernels.name_id, list(kinds)))
    if not len(mine):
        return found
    kind = np.array([kinds[int(n)] for n in kernels.name_id[mine]], object)
    asked = np.array([_KINDS.get(name, name) for name in calls.kind], object)
    size = _counted(calls)
    own = kernels.graph_node[mine] == 0
    launch, tid = _launches(rows, kernels.correlation[mine])
    claims = _claims(calls)
    call = np.where(own, _found(launch, tid, calls, claims), -1)
    claimed = call >= 0
    claimed[claimed] &= asked[call[claimed]] == kind[claimed]
    found[mine[claimed]] = size[call[claimed]]
    free = np.ones(len(calls), bool)
    free[claims[claims >= 0]] = False
    for name in set(kind.tolist()):
        rest = (kind == name) & ~claimed & (~own | (launch < 0))
        sizes = np.unique(size[free & (asked == name)])
        if len(sizes) == 1:
            found[mine[rest]] = sizes[0]
    return found


def _counted(calls: CollectiveCalls) -> Ints:
    """Of each call, as nccl-tests count; 0 where the ranks of its communicator are not known."""
    ranks = np.array([*calls.ranks, 0], np.int64)[calls.communicator]
    part = np.array([name in _OF_ALL for name in calls.kind], bool)
    return np.where(part, calls.bytes * ranks, calls.bytes)


def _launches(rows: TraceRows, correlation: Ints) -> tuple[Ints, Ints]:
    """(start, thread) of the call that launched each; -1: not recorded."""
    api = rows.api
    if not len(api):
        nothing = np.full(len(correlation), -1, np.int64)
        return nothing, nothing
    order = np.argsort(api.correlation, kind="stable")
    known = api.correlation[order]
    at = np.minimum(np.searchsorted(known, correlation), len(known) - 1)
    there = (known[at] == correlation) & (correlation != 0)
    return (
        np.where(there, api.start_ns[order][at], -1),
        np.where(there, api.tid[order][at] & 0xFFFFFF, -1),
    )


def _claims(calls: CollectiveCalls) -> Ints:
    """Of each launch of the process the call that it belongs to; -1: none, or one of several."""
    found = np.full(len(calls.launch_ns), -1, np.int64)
    for thread in np.unique(calls.launch_tid):
        mine = np.flatnonzero(calls.launch_tid == thread)
        made = np.flatnonzero(calls.tid == thread)
        so_far = np.searchsorted(calls.start_ns[made], calls.launch_ns[mine], "right")
        one = np.diff(so_far, prepend=0) == 1
        found[mine[one]] = made[so_far[one] - 1]
    return found


def _found(launch: Ints, tid: Ints, calls: CollectiveCalls, claims: Ints) -> Ints:
    """What those launches claim."""
    known = len(calls.launch_ns)
    if not known:
        return np.full(len(launch), -1, np.int64)
    at = np.minimum(np.searchsorted(calls.launch_ns, launch), known - 1)
    same = (calls.launch_ns[at] == launch) & (calls.launch_tid[at] == tid)
    return np.where(same, claims[at], -1)
