"""Values of one event as integers, whatever the writer made of them.

Kineto writes times in µs, as the Trace Event Format has it, whatever ``displayTimeUnit`` says:
whole ones until 2023, then with three decimals, since 1970 or since ``baseTimeNanoseconds``. Thread
ids were texts (``stream 7``) in 2021.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LONGEST_NS = 1 << 62
_TAIL = re.compile(r"(\d+)\s*$")
_COPY = re.compile(r"([HDAP])to([HDAP])")
_SIDES = re.compile(r"\(\s*(\w+)\s*->\s*(\w+)\s*\)")
# ENUM_CUDA_MEMCPY_OPER and ENUM_CUDA_MEM_KIND of nsys' schema.
_OPERATIONS = {"HtoD": 1, "DtoH": 2, "DtoD": 8, "HtoH": 9, "PtoP": 10}
_KINDS = {"Pageable": 0, "Host": 0, "Pinned": 1, "Device": 2, "Array": 3, "Managed": 4}
_UNKNOWN_KIND = 7
_ELEMENT = {
    **dict.fromkeys(["Byte", "Char", "Bool", "Float8_e4m3fn", "Float8_e5m2"], 1),
    **dict.fromkeys(["Short", "Half", "BFloat16", "UInt16"], 2),
    **dict.fromkeys(["Int", "Float", "UInt32"], 4),
    **dict.fromkeys(["Long", "Double", "ComplexFloat", "UInt64"], 8),
    "ComplexDouble": 16,
}
"""Bytes by ``c10::ScalarType``'s name, as Kineto writes it."""
_MOST_ELEMENTS = 1 << 48
"""More is no count; times a size it fits 62 bits."""
_SYNCS = {"event": 1, "wait": 2, "stream": 3, "context": 4}


def nanoseconds(value: Any) -> int | None:
    """Of µs; ``None``: no number, or none that fits."""
    if type(value) is int:
        found = value * 1000
    elif isinstance(value, str):
        return None
    else:
        try:
            found = round(value * 1000)
        except (TypeError, ValueError, OverflowError, ArithmeticError):
            return None  # null, NaN, infinity
    return found if -LONGEST_NS < found < LONGEST_NS else None


def whole(value: Any, otherwise: int = 0) -> int:
    """An integer of at most 62 bits, also from ``"7"``, ``"stream 7"`` or ``7.0``."""
    if type(value) is int:
        found = value
    elif isinstance(value, str):
        match = _TAIL.search(value[-40:])
        found = int(match[1]) if match else otherwise
    elif isinstance(value, float) and value.is_integer():
        found = int(value)
    else:
        return otherwise
    return found if -LONGEST_NS < found < LONGEST_NS else otherwise


def three(value: Any) -> tuple[int, int, int]:
    """``grid`` and ``block``; zeros where they are not said (kernels of a graph on AMD)."""
    if isinstance(value, list) and len(value) == 3:
        return whole(value[0]), whole(value[1]), whole(value[2])
    return 0, 0, 0


def copy_kind(name: str, values: Mapping[str, Any]) -> tuple[int, int, int]:
    """Operation, kind of the source, kind of the target, as nsys numbers them."""
    said = values.get("kind")
    match = _COPY.search(name) or _COPY.search(said if isinstance(said, str) else "")
    operation = _OPERATIONS.get(match[0], 0) if match else 0
    sides = _SIDES.search(name)
    if sides is None:
        return operation, _UNKNOWN_KIND, _UNKNOWN_KIND
    source, target = sides.groups()
    return operation, _KINDS.get(source, _UNKNOWN_KIND), _KINDS.get(target, _UNKNOWN_KIND)


def collective_bytes(values: Mapping[str, Any]) -> int | None:
    """What a collective moves, from the arguments that torch gives NCCL's kernels.

    nccl-tests count the larger of what one rank gives and what it gets: the buffer of an
    all-reduce, what every rank has behind an all-gather, what it has before a reduce-scatter.
    ``None`` where the counts or the type are missing.
    """
    size = _ELEMENT.get(str(values.get("dtype")))
    count = max(whole(values.get("In msg nelems")), whole(values.get("Out msg nelems")))
    return count * size if size and 0 < count < _MOST_ELEMENTS else None


def sync_kind(name: str) -> int:
    """``Stream Sync``, ``Stream Wait Event``, ``Event Sync``, ``Context Sync``."""
    words = name.lower()
    order = ("wait", "context", "event", "stream")
    return next((_SYNCS[word] for word in order if word in words), 0)
