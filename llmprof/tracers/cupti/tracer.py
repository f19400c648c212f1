"""CUPTI activity recording in the worker: raw buffers into a spool file. Standard library only.

The completed callback looks at no record: it writes the buffer with one ``writev`` and gives it
back to the pool. Sizes and names are settled after the round; the parent decodes with numpy
(``cupti_decode``).

Kinds are switched on once, before the CUDA context and the first graph capture, and off only at
the end: changing them around instantiated graphs has crashed inside ``cuGraphLaunch``.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llmprof.records import Unavailable
from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.layout import (
    API_KINDS,
    CONCURRENT_KERNEL,
    DRIVER,
    MEMCPY,
    MEMSET,
    RUNTIME,
    SYNCHRONIZATION,
    Layout,
)
from llmprof.tracers.cupti.library import (
    COMPLETED,
    REQUESTED,
    THREAD_ID_SYSTEM,
    Cupti,
    CuptiError,
    load,
)
from llmprof.tracers.cupti.resolve import NameResolver, declared_layout, settle_layout

Level = Literal["kernels", "full", "all"]

KINDS: dict[Level, tuple[int, ...]] = {
    "kernels": (CONCURRENT_KERNEL, MEMCPY, MEMSET),
    "full": (CONCURRENT_KERNEL, MEMCPY, MEMSET, SYNCHRONIZATION),
    "all": (CONCURRENT_KERNEL, MEMCPY, MEMSET, RUNTIME, DRIVER, SYNCHRONIZATION),
}
"""OVERHEAD (17) is left out: its record owns a malloc'ed block (``overheadData``) that every client
must free, which would mean looking at records in the traced process."""

LEVELS: dict[str, Level] = {level: level for level in KINDS}
COST = {
    "kernels": "about 0.36 µs of GPU time a kernel, 4–5 % of a 3.3 ms step of 358 kernels",
    "full": "as kernels: the API calls that are chosen cost nothing that could be measured",
    "all": "as kernels, and a launch-bound eager engine becomes 1.2–1.4 times slower",
}
"""Measured on one H100 under CUDA 13.0."""

FORCED = 1
"""``CUPTI_ACTIVITY_FLAG_FLUSH_FORCED``."""
MAX_BUFFERS = 128
"""Buffers out at one time; beyond, CUPTI drops records and counts them."""
CLOCK_TRIES = 32

_pinned: list[object] = []
"""Callbacks and buffers that CUPTI may still hold: they live as long as the process."""


@dataclass(frozen=True)
class ClockTriple:
    """Three clocks at one moment, ns; ``error_ns`` bounds the distance between the readings."""

    monotonic_ns: int
    wall_ns: int
    cupti_ns: int
    error_ns: int


def read_clocks(cupti: Cupti, tries: int = CLOCK_TRIES) -> ClockTriple:
    """CUPTI and wall clock between two monotonic reads; the tightest of ``tries``.

    Raises:
        CuptiError: CUPTI has no time.
    """
    best: ClockTriple | None = None
    for _ in range(tries):
        before = time.monotonic_ns()
        device = cupti.timestamp()
        wall = time.time_ns()
        after = time.monotonic_ns()
        half = (after - before + 1) // 2
        if best is None or half < best.error_ns:
            best = ClockTriple(before + half, wall, device, half)
    if best is None:
        raise ValueError("tries must be at least 1")
    return best


class _Buffers:
    """The pool, and the two callbacks. They run on any thread, in the middle of any CUDA call."""

    def __init__(self, writer: spool.SpoolWriter, size: int) -> None:
        self._writer = writer
        self._size = size
        self._all: dict[int, memoryview] = {}
        self._free: list[int] = []
        self.recording = False
        self.frames: list[tuple[int, int]] = []
        """(offset, length) in the spool of every buffer of this round."""
        self.callback_ns = 0
        self.failure = ""
        self.callbacks = REQUESTED(self._requested), COMPLETED(self._completed)
        _pinned.append(self)

    def _requested(self, buffer: Any, size: Any, most: Any) -> None:
        try:
            address = self._free.pop()  # no test before: another thread may take the last one
        except IndexError:
            address = self._new()
        buffer[0] = address or None  # NULL declines: CUPTI drops records and counts them
        size[0] = self._size if address else 0
        most[0] = 0  # as many records as fit

    def _new(self) -> int:
        if len(self._all) >= MAX_BUFFERS:
            return 0
        try:
            memory = mmap.mmap(-1, self._size)  # page-aligned, and resident only where written
        except OSError:
            return 0
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._all[address] = memoryview(memory)
        return address

    def _completed(self, _context: Any, _stream: int, buffer: int, _size: int, valid: int) -> None:
        if self.recording and valid and buffer in self._all:
            begin = time.monotonic_ns()
            try:
                offset = self._writer.write(spool.RECORDS, self._all[buffer][:valid])
                self.frames.append((offset, valid))
            except OSError as why:
                self.recording = False
                self.failure = f"the trace could not be written: {why}"
            self.callback_ns += time.monotonic_ns() - begin
        if buffer in self._all:
            self._free.append(buffer)


class CuptiTracer:
    """Records GPU activity of this process, round by round.

    ``start`` before anything touches CUDA; then for each traced round ``begin_round`` and
    ``end_round`` while the device is idle; ``close`` at the end. Between rounds (load, warm-up)
    buffers go back to the pool unread.

    Args:
        spool_path: file for the parent; overwritten.
        level: ``kernels``: kernels, copies, sets. ``full``: API calls and synchronisation too.
        buffer_bytes: size of one buffer, a multiple of 8; 4 MiB hold 19,000 kernels.
        library: use this libcupti and look for no other.
    """

    name = "cupti"

    def __init__(
        self,
        spool_path: Path,
        level: Level = "kernels",
        buffer_bytes: int = 4 << 20,
        library: str | None = None,
    ) -> None:
        if buffer_bytes % 8 or not 4096 <= buffer_bytes <= spool.MAX_PAYLOAD:
            raise ValueError(f"buffer_bytes={buffer_bytes}: a multiple of 8, 4 KiB to 64 MiB")
        self.level = level
        self.cost = COST[level]
        self.missing: dict[str, str] = {}
        """Kinds that CUPTI refused (``kind 38``), with its reason."""
        self._path = spool_path
        self._buffer_bytes = buffer_bytes
        self._library = library
        self._cupti: Cupti | Unavailable | None = None
        self._enabled: list[int] = []
        self._writer: spool.SpoolWriter | None = None
        self._buffers: _Buffers | None = None
        self._names: NameResolver | None = None
        self._layout: Layout | None = None
        self._settled = False
        """The layout was confirmed on recorded buffers."""

    def probe(self) -> Unavailable | None:
        """Can CUPTI be loaded here? Registers nothing; only ``start`` meets another client."""
        if self._cupti is None:
            self._cupti = load(self._library)
        return self._cupti if isinstance(self._cupti, Unavailable) else None

    def start(self) -> Unavailable | None:
        """Register and switch the kinds on; ``Unavailable`` leaves nothing switched on.

        Raises:
            OSError: the spool file cannot be created.
        """
        why = self.probe()
        if why is not None:
            return why
        cupti = self._loaded()
        self._writer = spool.SpoolWriter(self._path)
        self._buffers = _Buffers(self._writer, self._buffer_bytes)
        self._names = NameResolver(cupti)
        atexit.register(self.close)  # CUPTI must not call into an interpreter that is gone
        try:
            code = cupti.lib.cuptiActivityRegisterCallbacks(*self._buffers.callbacks)
            cupti.check("cuptiActivityRegisterCallbacks", code)
            code = cupti.lib.cuptiSetThreadIdType(THREAD_ID_SYSTEM)
            cupti.check("cuptiSetThreadIdType", code)
            self._enable(cupti, CONCURRENT_KERNEL)
        except CuptiError as error:
            self.close()
            return Unavailable(f"kernels cannot be traced: {error}")
        for kind in KINDS[self.level][1:]:
            try:
                self._enable(cupti, kind)
            except CuptiError as error:
                self.missing[f"kind {kind}"] = str(error)
        if self.level == "full" and cupti.choose_calls() is None:
            self.missing["API calls"] = (
                "this CUPTI (before CUDA 12.5) cannot choose them: --trace all records every one"
            )
        # Now already, so that a worker that is killed leaves records that can be read.
        self._set_layout(declared_layout(cupti))
        return None

    def begin_round(self, round_id: int) -> Unavailable | None:
        """Throw away what was recorded so far, and record from here on; or why that failed."""
        cupti, buffers = self._started()
        buffers.frames.clear()
        buffers.callback_ns, buffers.failure = 0, ""
        try:
            cupti.check("cuptiActivityFlushAll", cupti.lib.cuptiActivityFlushAll(FORCED))
            cupti.dropped()  # what the warm-up lost is nobody's loss
            self._mark(round_id, "begin", read_clocks(cupti), 0)
        except CuptiError as why:
            return Unavailable(str(why))
        except OSError as why:
            return Unavailable(f"the trace could not be written: {why}")
        buffers.recording = True
        return None

    def end_round(self, round_id: int) -> dict[str, Any] | Unavailable:
        """Collect the round's records and their names; call it when the device is idle.

        Returns:
            What recording took: ``bytes``, ``buffers``, ``dropped`` records, ``callback_ns``
            spent writing; or why the round's trace is incomplete or unreadable.
        """
        cupti, buffers = self._started()
        try:
            clocks = read_clocks(cupti)
            cupti.check("cuptiActivityFlushAll", cupti.lib.cuptiActivityFlushAll(FORCED))
            buffers.recording = False
            dropped = cupti.dropped()
            if buffers.failure:
                return Unavailable(buffers.failure)
            self._mark(round_id, "end", clocks, dropped)
            self._describe(cupti, buffers)
        except CuptiError as why:
            return Unavailable(str(why))
        except OSError as why:
            return Unavailable(f"the trace could not be written: {why}")
        finally:
            buffers.recording = False
        return {
            "bytes": sum(length for _, length in buffers.frames),
            "buffers": len(buffers.frames),
            "dropped": dropped,
            "callback_ns": buffers.callback_ns,
        }

    def close(self) -> None:
        """Switch off, collect what CUPTI still holds, close the spool. Twice is no error.

        Errors are of no use to anybody here: CUDA may be gone already.
        """
        cupti = self._cupti
        if self._buffers is not None:
            self._buffers.recording = False
        if isinstance(cupti, Cupti) and self._enabled:
            for kind in self._enabled:
                cupti.lib.cuptiActivityDisable(kind)
            if self.level == "full":
                cupti.choose_calls(on=False)
            self._enabled.clear()
            cupti.lib.cuptiActivityFlushAll(FORCED)
        if self._writer is not None:
            self._writer.close()
        atexit.unregister(self.close)

    def _enable(self, cupti: Cupti, kind: int) -> None:
        cupti.check(f"cuptiActivityEnable({kind})", cupti.lib.cuptiActivityEnable(kind))
        self._enabled.append(kind)

    def _mark(
        self, round_id: int, where: Literal["begin", "end"], clocks: ClockTriple, dropped: int
    ) -> None:
        if self._writer is not None:
            mark = {"round": round_id, "where": where, "dropped": dropped, **vars(clocks)}
            self._writer.write_json(spool.MARK, mark)

    def _set_layout(self, layout: Layout | None) -> None:
        if layout is None or layout == self._layout or self._writer is None:
            return
        self._layout = layout
        library = self._loaded().path
        facts = {"level": self.level, "pid": os.getpid(), "library": library}
        self._writer.write_json(spool.LAYOUT, {**layout.to_dict(), **facts})

    def _describe(self, cupti: Cupti, buffers: _Buffers) -> None:
        """Write the layout (where it is new) and the names that this round was first to use."""
        writer, names = self._writer, self._names
        if writer is None or names is None or not buffers.frames:
            return
        readers = [partial(writer.read_back, *frame) for frame in buffers.frames]
        if not self._settled:
            layout = settle_layout(cupti, self._layout, readers)
            # A learnt layout grows with each round that shows a new kind.
            self._settled = layout.source != "learnt"
            self._set_layout(layout)
        if self._layout is None:
            return
        for read in readers:
            found = names.resolve(read(), self._layout)
            api = {str(kind): found.api[kind] for kind in API_KINDS if found.api[kind]}
            if found.kernels or api:
                writer.write_json(spool.NAMES, {"kernels": found.kernels, "api": api})

    def _loaded(self) -> Cupti:
        if not isinstance(self._cupti, Cupti):
            raise RuntimeError("CUPTI is not loaded")
        return self._cupti

    def _started(self) -> tuple[Cupti, _Buffers]:
        if self._buffers is None or not self._enabled:
            raise RuntimeError("the CUPTI tracer is not started")
        return self._loaded(), self._buffers
