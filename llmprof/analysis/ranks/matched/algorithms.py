"""By which algorithm a collective works, as far as the name of its kernel says it.

NCCL builds a few kernels only and runs all its device functions in them: for an all-reduce one
named ``…_RING_LL`` and one named ``…_TREE_LL`` (``best_kernel`` in src/device/generate.py; macros
before 2.19). So RING may be a ring, NVLS or CollNet, and LL any protocol; what NCCL chose it says
itself (NCCL_DEBUG_SUBSYS=TUNING). Kernels of symmetric memory (2.27 on) are one an algorithm.
"""

from __future__ import annotations

import re
from typing import Final

from llmprof.records import Unavailable

_NCCL: Final = re.compile(
    r"(COLLNET_DIRECT|COLLNET_CHAIN|NVLS_TREE|NVLS|PAT|TREE|RING)_(LL128|SIMPLE|LL)(?![A-Z0-9])"
)
_SYMMETRIC: Final = re.compile(
    r"(?:Kernel_|^)[A-Z][A-Za-z]+_((?:AGx|RSx|Rail|Tma|LL|LD|ST)\w*?)(?=_sum|_R_|_R$|$)"
)
_TWO_SHOT: Final = re.compile(r"two_?shot|2_?stage", re.IGNORECASE)
_ONE_SHOT: Final = re.compile(r"one_?shot|1_?stage", re.IGNORECASE)

SHARED: Final = Unavailable(
    "NCCL runs ring, NVLS and CollNet with LL, LL128 and Simple in kernels of this one name"
)
SILENT: Final = Unavailable("its kernel's name does not say it")


def algorithm(name: str) -> str | Unavailable:
    """Of a kernel whose category is ``communication``; printable words.

    Args:
        name: without its arguments; NCCL's prefix may be left out, as in ``Operation.key``.
    """
    if found := _SYMMETRIC.search(name):
        multicast = ", multicast in the switch (NVLS)" if "MC" in found[1] else ""
        return f"symmetric memory, {found[1]}{multicast}"
    if found := _NCCL.search(name):
        way, protocol = found[1], found[2]
        if (way, protocol) == ("RING", "LL"):
            return SHARED
        if (way, protocol) == ("TREE", "LL"):
            return "tree; NCCL's name does not say with which protocol"
        return f"{way}, {protocol}"
    if "pg_all_reduce_cpu" in name:
        return "summed in host memory"
    if "multimem" in name.casefold():
        return "multicast in the switch (NVLS)"
    if _TWO_SHOT.search(name):
        return "two shots: reduce-scatter, then all-gather"
    if _ONE_SHOT.search(name):
        return "one shot: each rank reads all others"
    return SILENT
