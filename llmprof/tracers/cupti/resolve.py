"""What only the worker can know about recorded buffers: record sizes and names.

Runs after a round, outside every timed step. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llmprof.tracers.cupti.layout import (
    API_KINDS,
    CONCURRENT_KERNEL,
    DRIVER,
    KERNEL,
    KERNEL_KINDS,
    MIN_SIZES,
    NAME_OFFSET,
    RUNTIME,
    Layout,
    implausible,
    known_layout,
)
from llmprof.tracers.cupti.library import Cupti, CuptiError

CHECKED_RECORDS = 256
"""Records walked to confirm a known layout: under a millisecond."""
LEARNT_RECORDS = 100_000
"""Records walked a round to learn an unknown one: about 0.3 s."""
MAX_NAME = 64 << 10
_DOMAINS = {DRIVER: 1, RUNTIME: 2}
"""Record kind → ``CUpti_CallbackDomain`` (cupti_callbacks.h)."""
_HEAD = struct.Struct("<II")
_TIMES = struct.Struct("<qq")
_POINTER = struct.Struct("<Q")


def declared_layout(cupti: Cupti) -> Layout | None:
    """The record sizes that the library states itself, else those of the table, else ``None``."""
    own = {kind: size for kind in MIN_SIZES if (size := cupti.struct_size(kind)) is not None}
    if len(own) == len(MIN_SIZES):
        return Layout(cupti.version, own, "library")
    return known_layout(cupti.version)


def settle_layout(
    cupti: Cupti, layout: Layout | None, buffers: Iterable[Callable[[], bytes]]
) -> Layout:
    """The record sizes of this CUPTI, confirmed on recorded buffers.

    What a walk over the buffers shows overrules what was declared, and is all there is for a
    version that nobody knows.

    Args:
        layout: ``declared_layout``, or what earlier rounds taught.
        buffers: one function a recorded buffer, which reads it.

    Raises:
        CuptiError: the records are not of the shape that llmprof reads.
    """
    declared = layout is not None and layout.source != "learnt"
    left = CHECKED_RECORDS if declared else LEARNT_RECORDS
    learnt: dict[int, int] = {}
    sample = b""
    for read in buffers:
        data = read()
        for kind, size in cupti.record_sizes(data, left).items():
            if learnt.setdefault(kind, size) != size:
                raise CuptiError(f"records of kind {kind} have several sizes")
        sample = sample or data
        left -= len(data) // max(learnt.values(), default=len(data) or 1)
        if left <= 0:
            break
    if (
        layout is not None
        and declared
        and all(layout.sizes.get(k, s) == s for k, s in learnt.items())
    ):
        return layout
    sizes = {**(layout.sizes if layout is not None else {}), **learnt}
    if CONCURRENT_KERNEL in sizes:
        sizes[KERNEL] = sizes[CONCURRENT_KERNEL]  # one struct serves both kinds
    wrong = implausible(sizes) or _odd_kernels(sample, sizes)
    if wrong:
        raise CuptiError(f"CUPTI {cupti.version} is not known to this llmprof and {wrong}")
    return Layout(cupti.version, sizes, "learnt")


def _odd_kernels(data: bytes, sizes: dict[int, int]) -> str:
    """Does the assumed prefix of a kernel record hold in the first records?"""
    at = 0
    for _ in range(CHECKED_RECORDS):
        if at + 8 > len(data):
            break
        kind = _HEAD.unpack_from(data, at)[0]
        size = sizes.get(kind, 0)
        if not size or at + size > len(data):
            break
        if kind in KERNEL_KINDS:
            start, end = _TIMES.unpack_from(data, at + 16)
            (pointer,) = _POINTER.unpack_from(data, at + NAME_OFFSET)
            if not 0 <= end - start < 3600 * 10**9 or not pointer:
                return "its kernel records are laid out differently"
        at += size
    return ""


@dataclass
class Names:
    """Names found so far: ``kernels[pointer]``, ``api[kind][cbid]``."""

    kernels: dict[int, str] = field(default_factory=dict)
    api: dict[int, dict[int, str]] = field(default_factory=lambda: {k: {} for k in API_KINDS})


class NameResolver:
    """Resolves each kernel name pointer and each API id once in the life of a worker."""

    def __init__(self, cupti: Cupti) -> None:
        self._cupti = cupti
        self._seen_pointers: set[int] = set()
        self._seen_ids: set[tuple[int, int]] = set()

    def resolve(self, data: bytes, layout: Layout) -> Names:
        """Names in this buffer that were never seen before.

        A pointer that cannot be read is left out (the kernel then has no name, with a reason).
        """
        pointers, ids = unique_references(data, layout)
        found = Names()
        for pointer in pointers - self._seen_pointers:
            name = read_c_string(pointer)
            if name is not None:
                found.kernels[pointer] = name
        for kind, cbid in ids - self._seen_ids:
            name = self._cupti.callback_name(_DOMAINS[kind], cbid)
            if name is not None:
                found.api[kind][cbid] = name
        self._seen_pointers |= pointers
        self._seen_ids |= ids
        return found


def unique_references(data: bytes, layout: Layout) -> tuple[set[int], set[tuple[int, int]]]:
    """Name pointers of kernels, and (kind, cbid) of API records, each once."""
    sizes = layout.sizes
    pointers: set[int] = set()
    ids: set[tuple[int, int]] = set()
    end = len(data) & ~7
    view = memoryview(data)[:end]
    kind = _HEAD.unpack_from(data)[0] if end else 0
    size = sizes.get(kind, 0)
    if kind in KERNEL_KINDS and end % size == 0 and set(view.cast("I")[:: size // 4]) == {kind}:
        # Kernels only, the default level: one strided slice a buffer, looped over in C.
        return set(view.cast("Q")[NAME_OFFSET // 8 :: size // 8]), ids
    at, head, pointer = 0, _HEAD.unpack_from, _POINTER.unpack_from
    while at < end:
        kind, second = head(data, at)
        size = sizes.get(kind, 0)
        if not size or at + size > end:
            break  # an unknown kind: the parent's decoder stops here too, and says so
        if kind in KERNEL_KINDS:
            pointers.add(pointer(data, at + NAME_OFFSET)[0])
        elif kind in API_KINDS:
            ids.add((kind, second))
        at += size
    return pointers, ids


def read_c_string(pointer: int) -> str | None:
    """The C string at an address of this process; ``None`` where it cannot be read.

    Through ``/proc/self/mem``: a pointer from a record of an unexpected shape then ends in an
    error and not in a segmentation fault of the engine.
    """
    if not 0 < pointer < 1 << 56:
        return None
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        # Refused to a process that is not dumpable; CUPTI's own pointers are still good.
        return ctypes.string_at(pointer).decode(errors="replace")
    text = b""
    try:
        while len(text) < MAX_NAME:
            # Not past the end of a page, where the mapping may end.
            part = os.pread(memory, 4096 - (pointer + len(text)) % 4096, pointer + len(text))
            text += part
            if not part or 0 in part:
                break
    except OSError:
        return None
    finally:
        os.close(memory)
    return text.partition(b"\0")[0].decode(errors="replace") or None
