"""Which collective a kernel is, from its name, and what its bytes mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from llmprof.analysis.ranks.matched.algorithms import algorithm
from llmprof.records import Unavailable

_KINDS: tuple[tuple[str, str], ...] = (
    # exllamav3 adds up in host memory: one kernel hands in, the next one waits for the sum.
    ("Send", r"(?<![a-z_])pg_all_reduce_cpu_send"),
    ("Receive", r"(?<![a-z_])pg_all_reduce_cpu_recv"),
    ("AllReduce", r"all_?reduce|cross_device_reduce|quick_?reduce|multimem_all_reduce"),
    ("ReduceScatter", r"reduce_?scatter"),
    ("AllGather", r"all_?gather"),
    ("AllToAll", r"all_?to_?all|::dispatch|::combine"),
    ("SendRecv", r"send_?recv|sendrecv"),
    ("Broadcast", r"broadcast"),
    ("Reduce", r"(?<!all)reduce"),
)
_FUSED = re.compile(r"norm|rms|residual|gemm|matmul|quant", re.IGNORECASE)
WAITS_FOR_ALL = frozenset({"AllReduce", "ReduceScatter", "AllGather", "AllToAll"})
"""No rank can end one of these before every rank has started it."""
WAITS_FOR_NONE = frozenset({"Send"})
"""A rank starts and ends one of these whenever it likes."""


@dataclass(frozen=True)
class Operation:
    """One sort of collective."""

    key: str
    """Equal on all ranks for the same sort: kind, arithmetic and type, on one printable line."""
    kind: str
    """``AllReduce``, …, ``other``."""
    fused: bool
    """Arithmetic that is no communication is part of the kernel: wait and transfer are bounds."""
    algorithm: str | Unavailable


class Sort(NamedTuple):
    """Collectives that are alike on all ranks."""

    key: str
    """``Operation.key``."""
    bytes: int
    """Of each of them, as nccl-tests count; 0: not known."""


@lru_cache(maxsize=4096)
def operation(name: str) -> Operation:
    """Of a kernel whose category is ``communication``.

    NCCL names a kernel ``ncclDevKernel_AllReduce_Sum_f16_RING_LL(…)``: what is behind the type is
    a choice that every rank makes alike, and stays in the key.
    """
    plain = name.partition("(")[0][:200]
    short = re.sub(r"^.*(nccl(Symk?)?(Dev)?Kernel_|rcclKernel_)|^void ", "", plain).strip()
    low = plain.casefold()
    kind = next((kind for kind, pattern in _KINDS if re.search(pattern, low)), "other")
    text = "".join(c if c.isprintable() else "?" for c in short) or "?"
    return Operation(text[:80], kind, bool(_FUSED.search(plain)), algorithm(plain))


def bus_factor(kind: str, ranks: int) -> float | None:
    """Bus bandwidth / algorithm bandwidth, as nccl-tests define them (doc/PERFORMANCE.md):
    ``None`` for an operation that they give no factor for."""
    if ranks < 2:
        return None
    factors = {
        "AllReduce": 2 * (ranks - 1) / ranks,
        "AllGather": (ranks - 1) / ranks,
        "ReduceScatter": (ranks - 1) / ranks,
        "AllToAll": (ranks - 1) / ranks,
        "Broadcast": 1.0,
        "Reduce": 1.0,
        "SendRecv": 1.0,
    }
    return factors.get(kind)
