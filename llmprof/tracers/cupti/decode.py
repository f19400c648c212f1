"""Spool files and raw CUPTI buffers to numpy arrays, in the parent. Needs numpy.

A buffer mixes records of different sizes, so where the n-th record lies depends on all before it.
``record_offsets`` finds every start without a Python step a record. Words that look like a time
near the first record's, with a kind before them where a record of that kind has it, are nearly
always the starts; whether each leads to the next one says so. Where they are not (records without
times), each 8-byte word that could start a record points to the word after that record, and pointer
doubling (as in parallel list ranking) marks those that are reached from the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmprof.records import Unavailable
from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.layout import (
    API_FIELDS,
    API_KINDS,
    DRIVER,
    KERNEL_FIELDS,
    KERNEL_KINDS,
    MAX_SIZE,
    MEMCPY,
    MEMCPY_FIELDS,
    MEMSET,
    MEMSET_FIELDS,
    MIN_SIZES,
    RUNTIME,
    SYNC_FIELDS,
    SYNCHRONIZATION,
    Field,
    Layout,
)

Array = npt.NDArray[Any]

WINDOW = 1 << 20
"""Bytes looked at in one go: the temporary arrays stay in the cache, and small."""
_MAX_KIND = 1024
"""cupti_activity.h of 13.5 ends at kind 60; larger numbers start no record."""


@dataclass
class Records:
    """The records of one buffer by kind: structured arrays with the fields of ``cupti_layout``.

    Times are CUPTI's clock in ns (``ClockMap`` turns them into CLOCK_MONOTONIC). Every row has a
    start and an end that is not before it.
    """

    kernels: Array
    memcpy: Array
    memset: Array
    api: Array
    sync: Array
    other: Counter[int] = field(default_factory=Counter)
    """Records of kinds that llmprof does not read, by kind."""
    untimed: Counter[int] = field(default_factory=Counter)
    """Records that are not in the arrays because their times cannot be true, by kind."""
    lost: list[str] = field(default_factory=list)
    """What this buffer held that is not in the arrays, and why."""


_FAR = 32
"""Records between two that ``_chain`` walks to; a power of two."""
_NEAR_NS = np.uint64(60_000_000_000)
"""Of the first record of a window: a buffer is full, or collected, long before that."""
_ROUNDS = 8
"""In which words that only look like starts are left out."""
_TIMED: tuple[tuple[int, tuple[Field, ...]], ...] = (
    *((kind, KERNEL_FIELDS) for kind in KERNEL_KINDS),
    (MEMCPY, MEMCPY_FIELDS),
    (MEMSET, MEMSET_FIELDS),
    *((kind, API_FIELDS) for kind in API_KINDS),
    (SYNCHRONIZATION, SYNC_FIELDS),
)
_START_WORD = np.zeros(_MAX_KIND, np.int32)
"""The word of a record that holds its start, by kind; 0: not known."""
for _kind, _fields in _TIMED:
    _START_WORD[_kind] = next(offset for name, _, offset in _fields if name == "start") // 8
assert set(_START_WORD.tolist()) <= {0, 1, 2}


def record_dtype(fields: tuple[Field, ...], size: int) -> np.dtype[Any]:
    """The structured type of a record of ``size`` bytes; bytes that no field names are skipped."""
    names, formats, offsets = zip(*fields, strict=True)
    spec = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return np.dtype(spec)  # type: ignore[call-overload,no-any-return]


def record_offsets(data: bytes | memoryview, sizes: Mapping[int, int]) -> tuple[Array, Array, int]:
    """Where each record starts.

    Returns:
        offsets (int64, bytes), kinds (uint32), and the byte where the chain ended: the length of
        the data, or the start of a record that is cut or of unknown kind.
    """
    at, kinds, end = _record_words(data, sizes)
    return at * 8, kinds, end * 8


def _record_words(data: bytes | memoryview, sizes: Mapping[int, int]) -> tuple[Array, Array, int]:
    """As ``record_offsets``, in words of 8 bytes."""
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    step_of = np.zeros(_MAX_KIND, np.int32)
    for kind, size in sizes.items():
        if 0 < kind < _MAX_KIND - 1:  # the last slot stays 0: every larger number lands there
            step_of[kind] = size // 8
    window = WINDOW // 8
    parts: list[Array] = []
    start = 0
    while start < len(words):
        part = words[start : start + window]
        for method in (_one_stride, _by_times, _chain):
            found, after = method(part, step_of)
            if after * 2 >= len(part):
                break
        if not len(found):
            break
        parts.append(found.astype(np.int64, copy=False) + start)
        start += after
    at = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return at, words.view(np.uint32)[::2][at], start


def _one_stride(words: Array, step_of: Array) -> tuple[Array, int]:
    """As ``_chain``, as far as all records are of one kind: those of a CUDA graph are."""
    count, kind = len(words), int(words[0]) & 0xFFFFFFFF
    first = int(step_of[min(kind, len(step_of) - 1)])
    if not first or count < first:
        return np.zeros(0, np.intp), 0
    column = words.view(np.uint32)[: 2 * (count - count % first) : 2 * first]
    other = np.flatnonzero(column[:32] != kind)
    if not len(other):  # the first ones are alike
        other = np.flatnonzero(column != kind)
    run = int(other[0]) if len(other) else len(column)
    return np.arange(run, dtype=np.intp) * first, run * first


def _by_times(words: Array, step_of: Array) -> tuple[Array, int]:
    """As ``_chain``, as far as records with times near the first one's follow one another."""
    kinds = words.view(np.uint32)[::2]  # the low half: every record starts with its u32 kind
    count, first_kind = len(words), int(kinds[0])
    at = int(_START_WORD[min(first_kind, len(_START_WORD) - 1)])
    none = np.zeros(0, np.intp)
    if not at or at + 1 >= count:
        return none, 0
    low = max(int(words[at]) - int(_NEAR_NS), 1)
    near = words - np.uint64(low) < 2 * _NEAR_NS
    # A start is the first of a row of times: its end follows, and perhaps when it was completed.
    begins = near[:-1] & near[1:]
    begins[1:] &= ~near[:-2]
    times = np.flatnonzero(begins)
    one, two = (_START_WORD.take(kinds[times - back], mode="clip") == back for back in (1, 2))
    two[: np.searchsorted(times, 2)] = False  # the first word has none before it
    both = one & two
    starts = times - 2
    starts += one & ~two
    found = one | two
    if not found.all():
        starts, both = starts[found], both[found]
    starts, after = _linked(starts, both, kinds, step_of)
    if not len(starts) or starts[0]:
        return none, 0
    torn = np.flatnonzero(starts[1:] != after[:-1])
    upto = int(torn[0]) + 1 if len(torn) else len(starts)
    if int(after[upto - 1]) > count:  # only the last one can reach so far
        upto -= 1
    return starts[:upto], int(after[upto - 1]) if upto else 0


def _linked(starts: Array, both: Array, kinds: Array, step_of: Array) -> tuple[Array, Array]:
    """Of words that look like starts, those that others lead to; and where they lead.

    Args:
        both: those that may as well start one word later: a copy of 4 bytes looks like a call.
    """
    for _ in range(_ROUNDS):
        step = step_of.take(kinds[starts], mode="clip")
        if not step.all():  # a kind without a size leads nowhere
            starts, both, step = starts[step > 0], both[step > 0], step[step > 0]
        after = starts + step
        torn = starts[1:] != after[:-1]
        if not torn.any():
            return starts, after
        later = torn & both[1:] & (starts[1:] + 1 == after[:-1])
        if later.any():
            starts[1:] += later
            both[1:] &= ~later
            continue
        led_to = np.zeros(len(kinds) + MAX_SIZE // 8, np.bool_)
        led_to[0], led_to[after] = True, True
        kept = led_to[starts]
        if kept.all():
            return starts, after
        starts, both = starts[kept], both[kept]
    return starts[:0], starts[:0]


def _chain(words: Array, step_of: Array) -> tuple[Array, int]:
    """Indices of the words that start a whole record, and of the word after the last of them,
    whatever the buffer holds."""
    count = len(words)
    kinds = words.astype(np.uint32)  # the low half: every record starts with its u32 kind
    step = step_of[np.minimum(kinds, len(step_of) - 1)]
    starts = np.flatnonzero(step).astype(np.int32)  # words that look like the start of a record
    after = starts + step[starts]
    whole = after <= count
    starts, after = starts[whole], after[whole]
    if not len(starts) or starts[0] != 0:
        return starts[:0], 0
    # Number the candidates; a word that is none leads to the last number, which is the end.
    end = len(starts)
    number = np.full(count + 1, end, np.int32)
    number[starts] = np.arange(end, dtype=np.int32)
    jump = np.append(number[after], np.int32(end))
    far = jump
    for _ in range(_FAR.bit_length() - 1):
        far = far[far]  # leads twice as far on
    # Every so many records one by one, those between them side by side: doubling ``jump`` until it
    # leads past the end would cost as many rounds over all candidates as there are bits in it.
    lead, anchors, at = far.data, [], 0
    while at < end:
        anchors.append(at)
        at = lead[at]
    reached = np.zeros(end + 1, np.bool_)
    front = np.array(anchors, np.int32)
    for _ in range(_FAR):
        reached[front] = True
        front = jump[front]
    chain = np.flatnonzero(reached[:end])
    return starts[chain], int(after[chain[-1]])


def decode_buffer(data: bytes | memoryview, layout: Layout) -> Records:
    """Split one buffer of activity records by kind.

    Never raises on corrupt data: what is whole is kept, the rest is named in ``lost``.
    """
    words, kinds, end_word = _record_words(data, layout.sizes)
    end = end_word * 8
    lost: list[str] = []
    untimed: Counter[int] = Counter()
    if end < len(data):
        kind = int.from_bytes(data[end : end + 4], "little")
        what = "a cut record" if kind in layout.sizes else f"a record of unknown kind {kind}"
        lost.append(f"{len(data) - end} bytes of a buffer not decoded, after {what}")
    counts = np.bincount(kinds)
    present = {int(k): int(counts[k]) for k in np.flatnonzero(counts)}

    def rows(kind: int, fields: tuple[Field, ...]) -> Array:
        least = MIN_SIZES[kind]  # no field is behind it
        if kind not in present:
            return np.zeros(0, record_dtype(fields, least))
        if len(present) == 1:
            dtype = record_dtype(fields, layout.sizes[kind])
            found = np.frombuffer(data, dtype, len(words))
        else:
            # An overlapping view with a record at every word; indexing copies whole records
            # (``take`` would first make the view contiguous: 27 times the buffer).
            raw = np.dtype((np.void, least))
            every: Array = np.ndarray(((end - least) // 8 + 1,), raw, data, 0, (8,))
            found = every[words[kinds == kind]].view(record_dtype(fields, least))
        return _plausible(found, kind, untimed)

    kernels = [rows(kind, KERNEL_FIELDS) for kind in KERNEL_KINDS if kind in present]
    # RUNTIME and DRIVER are one struct of one size in one array, in the order recorded.
    api = [rows(kind, API_FIELDS) for kind in (RUNTIME, DRIVER)]
    return Records(
        kernels=_joined(kernels) if kernels else rows(KERNEL_KINDS[0], KERNEL_FIELDS),
        memcpy=rows(MEMCPY, MEMCPY_FIELDS),
        memset=rows(MEMSET, MEMSET_FIELDS),
        api=_joined(api),
        sync=rows(SYNCHRONIZATION, SYNC_FIELDS),
        other=Counter({kind: n for kind, n in present.items() if kind not in MIN_SIZES}),
        lost=lost,
        untimed=untimed,
    )


def _joined(parts: list[Array]) -> Array:
    full = [part for part in parts if len(part)]
    joined: Array = full[0] if len(full) == 1 else np.concatenate(full or parts[:1])
    return joined


def _plausible(rows: Array, kind: int, untimed: Counter[int]) -> Array:
    """Without the rows that have no times, which CUPTI writes when device memory is short, or whose
    times are negative or end before they begin."""
    start, end = rows["start"], rows["end"]
    good = (start > 0) & (end >= start)
    if good.all():
        return rows
    untimed[kind] += len(rows) - int(good.sum())
    kept: Array = rows[good]
    return kept


@dataclass(frozen=True)
class Mark:
    """A round's border in the spool: three clocks at one moment, ns (see ``ClockReading``)."""

    round_id: int
    where: str
    """``begin`` or ``end``."""
    monotonic_ns: int
    wall_ns: int
    cupti_ns: int
    error_ns: int
    dropped: int
    """Records that CUPTI had no buffer for, at ``end``."""


@dataclass(frozen=True)
class ClockMap:
    """CUPTI's clock to CLOCK_MONOTONIC by the line through two readings.

    t ↦ m₀ + (t - c₀) + (t - c₀)·((m₁ - m₀) - (c₁ - c₀))/(c₁ - c₀): the drift alone passes through
    floating point, so that nothing is lost of a 61-bit time.
    """

    begin: Mark
    end: Mark

    @property
    def error_ns(self) -> int:
        return max(self.begin.error_ns, self.end.error_ns)

    def monotonic(self, cupti_ns: Array) -> Array:
        """int64 ns, for an int64 array of any length."""
        since: Array = cupti_ns - np.int64(self.begin.cupti_ns)
        span = self.end.cupti_ns - self.begin.cupti_ns
        if span <= 0:
            return since + np.int64(self.begin.monotonic_ns)
        drift = (self.end.monotonic_ns - self.begin.monotonic_ns - span) / span
        drifted: Array = since + np.rint(since * drift).astype(np.int64)
        return drifted + np.int64(self.begin.monotonic_ns)


class Trace:
    """A spool file: layout, names and marks at once, records as a stream of one buffer each.

    Opening passes over the headers and reads the small frames only. ``lost`` says what was cut,
    broken or dropped; records are added to it while they stream.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.layout: Layout | Unavailable = Unavailable("the trace holds no record layout")
        self.kernel_names: dict[int, str] = {}
        """Name pointer → mangled name, as the module has it: not yet safe for a terminal."""
        self.api_names: dict[tuple[int, int], str] = {}
        """(kind, cbid) → ``cudaLaunchKernel_v7000``."""
        self.marks: list[Mark] = []
        self.lost: list[str] = []
        self.library = ""
        """Path of the CUPTI that recorded."""
        self._reader = spool.SpoolReader(path)
        self._buffers: list[tuple[int | None, spool.Frame]] = []
        self._scan()

    def _scan(self) -> None:
        current: int | None = None
        for frame in self._reader.frames():
            if frame.kind == spool.RECORDS:
                self._buffers.append((current, frame))
                continue
            value = self._reader.json(frame)
            try:
                if value is None:
                    raise ValueError("not one JSON object")
                if frame.kind == spool.MARK:
                    current = self._read_mark(value)
                elif frame.kind == spool.NAMES:
                    self._read_names(value)
                elif frame.kind == spool.LAYOUT:
                    self.layout = Layout.from_dict(value)
                    self.library = str(value.get("library", ""))
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as why:
                self.lost.append(f"a frame of kind {frame.kind} is corrupt: {why!r}")
        if self._reader.lost:
            self.lost.append(self._reader.lost)
        if isinstance(self.layout, Unavailable) and self._buffers:
            self.layout = Unavailable(
                "the worker ended before it wrote the layout and names of its records"
            )

    def _read_mark(self, value: dict[str, Any]) -> int | None:
        keys = ("monotonic_ns", "wall_ns", "cupti_ns", "error_ns", "dropped")
        numbers = [int(value[key]) for key in keys]
        if not all(0 <= number < 1 << 63 for number in numbers):
            raise ValueError("a time is out of range")
        mark = Mark(int(value["round"]), str(value["where"]), *numbers)
        self.marks.append(mark)
        if mark.dropped:
            self.lost.append(f"CUPTI dropped {mark.dropped} records in round {mark.round_id}")
        return mark.round_id if mark.where == "begin" else None

    def _read_names(self, value: dict[str, Any]) -> None:
        self.kernel_names.update({int(p): str(n) for p, n in value["kernels"].items()})
        for kind, names in value["api"].items():
            self.api_names.update({(int(kind), int(cbid)): str(n) for cbid, n in names.items()})

    def clock(self, round_id: int) -> ClockMap | Unavailable:
        """The clock of one round; ``Unavailable`` where the worker did not finish it."""
        ends = {m.where: m for m in self.marks if m.round_id == round_id}
        if "begin" not in ends or "end" not in ends:
            return Unavailable(f"round {round_id} of the trace was not finished")
        begin, end = ends["begin"], ends["end"]
        cupti, host = end.cupti_ns - begin.cupti_ns, end.monotonic_ns - begin.monotonic_ns
        # Both count ns and drift by parts in a million: readings this far apart are damaged.
        if abs(host - cupti) > abs(cupti) // 100 + begin.error_ns + end.error_ns + 1_000_000:
            return Unavailable(
                f"the clock readings of round {round_id} contradict each other: {cupti} ns by"
                f" CUPTI's clock, {host} ns by the host's"
            )
        return ClockMap(begin, end)

    def records(self, round_id: int | None = None) -> Iterator[Records]:
        """The buffers of one round (or of all), decoded one at a time.

        Nothing where the layout is ``Unavailable``.
        """
        layout = self.layout
        if isinstance(layout, Unavailable):
            return
        for owner, frame in self._buffers:
            if round_id is None or owner == round_id:
                found = decode_buffer(self._reader.payload(frame), layout)
                self.lost += found.lost
                yield found

    def close(self) -> None:
        self._reader.close()
