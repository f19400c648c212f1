"""Sizes and offsets of CUPTI activity records. Standard library only: worker and parent share it.

Every record starts with a u32 kind and is a multiple of 8 bytes long (``PACKED_ALIGNMENT`` in
cupti_activity.h). NVIDIA only ever appends fields, so the offsets below hold for every CUPTI from
CUDA 12.0 on; what differs is the size. ``sizeof`` and ``offsetof`` were taken with gcc from the
headers of 12.1, 12.4, 12.6, 12.8, 12.9, 13.0 and 13.5, and the sizes of 13.0–13.5 agree with
``cuptiActivityGetStructSize`` of 13.5 (which does not answer for copies and sets before 13.3; those
of 13.1 and 13.2 are the ones of 13.0 and 13.3, which are equal):

=====================  =========  =======  ======  =======  ===============
CUDA (CUPTI version)   kernel     memcpy   memset  API      synchronization
=====================  =========  =======  ======  =======  ===============
12.0–12.6 (18–24)      9: 208     5: 88    4: 88   40       40
12.8–12.9 (26–28)      9: 208     6: 96    4: 88   40       2: 56
13.0 (1300xx)          10: 216    6: 96    4: 88   40       2: 56
13.1–13.2              11: 224    6: 96    4: 88   40       2: 56
13.3 (1303xx)          12: 232    6: 96    4: 88   40       2: 56
13.4–13.5              13: 248    7: 112   5: 104  40       2: 56
=====================  =========  =======  ======  =======  ===============

``10: 216`` reads ``CUpti_ActivityKernel10``, 216 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# CUpti_ActivityKind, cupti_activity.h
MEMCPY, MEMSET, KERNEL, DRIVER, RUNTIME, CONCURRENT_KERNEL = 1, 2, 3, 4, 5, 10
MEMCPY_PEER, SYNCHRONIZATION = 22, 38
KERNEL_KINDS = (CONCURRENT_KERNEL, KERNEL)
API_KINDS = (RUNTIME, DRIVER)

Field = tuple[str, str, int]
"""(name, little-endian numpy format, offset in bytes)."""

KERNEL_FIELDS: tuple[Field, ...] = (
    ("kind", "<u4", 0),
    ("cache_config", "u1", 4),
    ("registers", "<u2", 6),
    ("start", "<i8", 16),
    ("end", "<i8", 24),
    ("device", "<u4", 40),
    ("context", "<u4", 44),
    ("stream", "<u4", 48),
    ("grid_x", "<i4", 52),
    ("grid_y", "<i4", 56),
    ("grid_z", "<i4", 60),
    ("block_x", "<i4", 64),
    ("block_y", "<i4", 68),
    ("block_z", "<i4", 72),
    ("static_shared", "<i4", 76),
    ("dynamic_shared", "<i4", 80),
    ("local_per_thread", "<u4", 84),
    ("local_total", "<u4", 88),
    ("correlation", "<u4", 92),
    ("grid_id", "<i8", 96),
    ("name_ptr", "<u8", 104),
    ("launch_type", "u1", 136),
    ("shared_executed", "<u4", 140),
    ("graph_node", "<u8", 144),
    ("shared_limit_config", "<u4", 152),
    ("graph", "<u4", 156),
)
"""``CUpti_ActivityKernel9`` and later. Sizes in bytes, times in ns of CUPTI's clock."""
NAME_OFFSET = 104
CBID_OFFSET = 4

_COPY_FIELDS: tuple[Field, ...] = (
    ("start", "<i8", 16),
    ("end", "<i8", 24),
    ("device", "<u4", 32),
    ("context", "<u4", 36),
    ("stream", "<u4", 40),
    ("correlation", "<u4", 44),
    ("graph_node", "<u8", 64),
    ("graph", "<u4", 72),
)
"""At the same places in copies and sets."""

MEMCPY_FIELDS: tuple[Field, ...] = (
    ("kind", "<u4", 0),
    ("copy_kind", "u1", 4),
    ("src_kind", "u1", 5),
    ("dst_kind", "u1", 6),
    ("flags", "u1", 7),
    ("bytes", "<u8", 8),
    *_COPY_FIELDS,
)
"""``CUpti_ActivityMemcpy5`` and later."""

MEMSET_FIELDS: tuple[Field, ...] = (
    ("kind", "<u4", 0),
    ("value", "<u4", 4),
    ("bytes", "<u8", 8),
    *_COPY_FIELDS,
    ("memory_kind", "<u2", 50),
)
"""``CUpti_ActivityMemset4`` and later."""

API_FIELDS: tuple[Field, ...] = (
    ("kind", "<u4", 0),
    ("cbid", "<u4", 4),
    ("start", "<i8", 8),
    ("end", "<i8", 16),
    ("pid", "<u4", 24),
    ("tid", "<u4", 28),
    ("correlation", "<u4", 32),
    ("return_value", "<u4", 36),
)
"""``CUpti_ActivityAPI``, both RUNTIME and DRIVER."""

SYNC_FIELDS: tuple[Field, ...] = (
    ("kind", "<u4", 0),
    ("type", "<u4", 4),
    ("start", "<i8", 8),
    ("end", "<i8", 16),
    ("correlation", "<u4", 24),
    ("context", "<u4", 28),
    ("stream", "<u4", 32),
    ("event", "<u4", 36),
)
"""``CUpti_ActivitySynchronization`` and later; 2³²-1: no stream or no event."""

MIN_SIZES = {
    MEMCPY: 80,
    MEMSET: 80,
    KERNEL: 160,
    CONCURRENT_KERNEL: 160,
    DRIVER: 40,
    RUNTIME: 40,
    SYNCHRONIZATION: 40,
}
"""A record of fewer bytes lacks a field that is read above."""
MAX_SIZE = 4096
"""Far above any record; a larger size is a broken file."""

Source = Literal["table", "library", "learnt"]


@dataclass(frozen=True)
class Layout:
    """Record sizes of one CUPTI: ``sizes[kind]`` bytes.

    ``source``: the table above, the library's own ``cuptiActivityGetStructSize``, or ``learnt`` by
    walking recorded buffers with ``cuptiActivityGetNextRecord``.
    """

    cupti_version: int
    sizes: Mapping[int, int]
    source: Source

    def to_dict(self) -> dict[str, Any]:
        return {
            "cupti_version": self.cupti_version,
            "sizes": {str(kind): size for kind, size in self.sizes.items()},
            "source": self.source,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Layout:
        """Raises ``ValueError`` where a size is none that a record can have."""
        try:
            sizes = {int(kind): int(size) for kind, size in data["sizes"].items()}
            version = int(data["cupti_version"])
        except (KeyError, TypeError, AttributeError) as why:
            raise ValueError(f"no record layout: {why!r}") from None
        wrong = implausible(sizes)
        if wrong:
            raise ValueError(wrong)
        source: Source = data["source"] if data.get("source") in ("table", "library") else "learnt"
        return Layout(version, sizes, source)


def implausible(sizes: Mapping[int, int]) -> str:
    """What is wrong with these record sizes; empty where nothing is."""
    for kind, size in sizes.items():
        least = MIN_SIZES.get(kind, 8)
        if kind <= 0 or size % 8 or not least <= size <= MAX_SIZE:
            return f"records of kind {kind} cannot be {size} bytes long (at least {least})"
    return ""


def _sizes(kernel: int, memcpy: int, memset: int, sync: int) -> dict[int, int]:
    return {
        MEMCPY: memcpy,
        MEMSET: memset,
        KERNEL: kernel,
        DRIVER: 40,
        RUNTIME: 40,
        CONCURRENT_KERNEL: kernel,
        MEMCPY_PEER: 96,
        SYNCHRONIZATION: sync,
    }


_TABLE = (
    # First and last ``cuptiGetVersion``, sizes of kernel, memcpy, memset, synchronization.
    (18, 24, _sizes(208, 88, 88, 40)),
    (26, 28, _sizes(208, 96, 88, 56)),
    (130000, 130099, _sizes(216, 96, 88, 56)),
    (130100, 130299, _sizes(224, 96, 88, 56)),
    (130300, 130399, _sizes(232, 96, 88, 56)),
    (130400, 130599, _sizes(248, 112, 104, 56)),
)


def known_layout(version: int) -> Layout | None:
    """The table's layout for this ``cuptiGetVersion``; ``None``: has to be learnt."""
    for first, last, sizes in _TABLE:
        if first <= version <= last:
            return Layout(version, dict(sizes), "table")
    return None
