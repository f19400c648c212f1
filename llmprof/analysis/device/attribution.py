"""Which decode step a kernel belongs to.

By time where that is proved: the engine waits for the device once a step, so no kernel may be
running at a stamp. Otherwise by launch: the host called the launch within the step. An engine that
runs free, traced without API calls, has no numbers per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmprof.records import RoundRecord, Unavailable
from llmprof.runfile.trace.rows import Ints, TraceRows

Method = Literal["time", "correlation"]

OUTSIDE = -1
UNMATCHED_LIMIT = 0.5
"""Largest share of a round's kernels that may lack a launch record (dropped by the tracer). Up to
there the step of the others is known, and what is not is told (``Attribution.lost_kernels``)."""


@dataclass(frozen=True)
class Check:
    """One condition that was looked at, and what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, eq=False)
class Attribution:
    """The step of every row: 0 prefill, i decode step i, -1 outside the round.

    Rows keep the order of ``TraceRows``. Without a method all rows are outside and
    ``unavailable`` says why.
    """

    kernel_step: Ints
    copy_step: Ints
    bounds_ns: Ints
    """Borders of the decode steps, steps + 1 values. By time: the host's stamps. By correlation:
    step i ends on the device when all work launched up to step i has ended."""
    method: Method | None
    unavailable: Unavailable | None
    reason: str
    """Why this method."""
    checks: tuple[Check, ...]
    lost_kernels: int = 0
    """Kernels within the steps whose step is not known."""
    lost_ns: int = 0
    """Their time."""

    @property
    def steps(self) -> int:
        return max(0, len(self.bounds_ns) - 1)


def attribute(rows: TraceRows, record: RoundRecord, clock_error_ns: int = 0) -> Attribution:
    """Give every kernel and copy of the round's process its step.

    Args:
        record: the traced round, on the time axis of the rows.
        clock_error_ns: bound of the offset between the tracer's clock and the stamps' clock.
    """
    stamps = np.maximum.accumulate(np.array(record.stamps_ns, np.int64))
    if record.steps < 1:
        return _nothing(rows, "the traced round has no finished decode step", ())
    if not (np.any(rows.kernels.pid == record.pid) or np.any(rows.copies.pid == record.pid)):
        return _nothing(rows, f"the trace holds no work of process {record.pid}", ())
    if record.steps_from == "detected":
        return Attribution(*_by_time(rows, record, stamps), stamps, "time", None, _DETECTED, ())
    checks = [_check_synchronous(record)]
    launched = _by_correlation(rows, record, stamps)
    pauses = _pauses(record)
    if checks[0].passed:
        stamps = _behind_work(rows, record, stamps, pauses, launched)
        timed = _by_time(rows, record, stamps)
        checks += _check_time(rows, record, stamps, timed, clock_error_ns)
        if launched is not None:
            checks.append(_check_launches(rows, record, stamps, timed, launched, clock_error_ns))
        if all(c.passed for c in checks):
            why = "the engine waits each step and no kernel ran across a stamp"
            return Attribution(*timed, stamps, "time", None, why, tuple(checks))
    failed = next(c for c in checks if not c.passed)
    if launched is None:
        return _nothing(rows, f"{failed.detail}; {_NO_LAUNCHES}", tuple(checks))
    checks.append(_check_matched(rows, record, launched))
    if not checks[-1].passed:
        return _nothing(rows, f"{failed.detail}; {checks[-1].detail}", tuple(checks))
    bounds = _device_bounds(rows, record, launched)
    lost = _lost(rows, record, launched[0])
    count, ns = len(lost), int((rows.kernels.end_ns - rows.kernels.start_ns)[lost].sum())
    why = failed.detail
    if count:
        why += f"; the step of {count} kernels ({ns / 1e6:.3f} ms) is not known"
    return Attribution(*launched, bounds, "correlation", None, why, tuple(checks), count, ns)


_DETECTED = (
    "the steps were found in the device's own work, so a kernel is of the step that it ran in"
)
_NO_LAUNCHES = "the trace holds no API calls to go by (record with --trace full)"

_Steps = tuple[Ints, Ints]
"""Step of every kernel, step of every copy."""


def _nothing(rows: TraceRows, reason: str, checks: tuple[Check, ...]) -> Attribution:
    kernels = np.full(len(rows.kernels), OUTSIDE, np.int64)
    copies = np.full(len(rows.copies), OUTSIDE, np.int64)
    empty = np.empty(0, np.int64)
    return Attribution(kernels, copies, empty, None, Unavailable(reason), reason, checks)


def _locate(times: Ints, record: RoundRecord, stamps: Ints) -> Ints:
    """Step i for stamps[i-1] <= time < stamps[i]; 0 from the start of prefill; -1 elsewhere."""
    step = np.searchsorted(stamps, times, "right").astype(np.int64)
    step[(times < record.prefill_start_ns) | (step == len(stamps))] = OUTSIDE
    return step


def _by_time(rows: TraceRows, record: RoundRecord, stamps: Ints) -> _Steps:
    """By the middle of each row: right for any clock offset that passes ``_check_time``."""

    def steps(start: Ints, end: Ints, pid: Ints) -> Ints:
        step = _locate(start + (end - start) // 2, record, stamps)
        step[pid != record.pid] = OUTSIDE
        return step

    k, c = rows.kernels, rows.copies
    return steps(k.start_ns, k.end_ns, k.pid), steps(c.start_ns, c.end_ns, c.pid)


def _by_correlation(rows: TraceRows, record: RoundRecord, stamps: Ints) -> _Steps | None:
    """By the start of the launch call; ``None`` without API rows of the process.

    A stream runs its work in the order of the launches: a kernel without a launch record is of the
    step that its neighbours in the stream share.
    """
    api = rows.api
    mine = np.flatnonzero(api.pid == record.pid)
    if not len(mine):
        return None
    ids, first = np.unique(api.correlation[mine], return_index=True)
    launch_step = _locate(api.start_ns[mine[first]], record, stamps)

    def steps(correlation: Ints, pid: Ints) -> Ints:
        at = np.minimum(np.searchsorted(ids, correlation), len(ids) - 1)
        found = (ids[at] == correlation) & (pid == record.pid)
        return np.where(found, launch_step[at], OUTSIDE)

    k, c = rows.kernels, rows.copies
    kernels = _between_equals(rows, record, steps(k.correlation, k.pid))
    return kernels, steps(c.correlation, c.pid)


def _unmatched(rows: TraceRows, record: RoundRecord) -> NDArray[np.bool_]:
    """Kernels of the process without a launch record."""
    k = rows.kernels
    lost: NDArray[np.bool_] = ~np.isin(k.correlation, rows.api.correlation) & (k.pid == record.pid)
    return lost


def _between_equals(rows: TraceRows, record: RoundRecord, step: Ints) -> Ints:
    k = rows.kernels
    lost = _unmatched(rows, record)
    if not lost.any() or lost.all():
        return step
    order = np.lexsort((k.start_ns, k.stream, k.context, k.device))
    known = np.flatnonzero(~lost[order])
    at = np.flatnonzero(lost[order])
    place = np.searchsorted(known, at)
    within = (place > 0) & (place < len(known))
    at, place = at[within], place[within]
    before, behind, own = order[known[place - 1]], order[known[place]], order[at]
    same = step[before] == step[behind]
    for column in (k.stream, k.context, k.device):
        same &= (column[before] == column[own]) & (column[behind] == column[own])
    filled = step.copy()
    filled[own[same]] = step[before[same]]
    return filled


def _lost(rows: TraceRows, record: RoundRecord, step: Ints) -> Ints:
    """Kernels without a launch record that ran between the first and the last stamp and are of no
    step."""
    k = rows.kernels
    inside = (k.start_ns >= record.stamps_ns[0]) & (k.start_ns < record.stamps_ns[-1])
    return np.flatnonzero(_unmatched(rows, record) & inside & (step == OUTSIDE))


def _pauses(record: RoundRecord) -> Ints:
    """Numbers of the steps that are pauses; 1 is the first step."""
    found = [n for n, label in enumerate(record.labels, 1) if label.phase == "pause"]
    return np.array(found, np.int64)


def _behind_work(
    rows: TraceRows, record: RoundRecord, stamps: Ints, pauses: Ints, launched: _Steps | None
) -> Ints:
    """The stamps, with pauses that begin no earlier than the work of the step before them has
    ended: a range says when the host was through. Without launch records what runs at the stamp is
    taken for the last of it."""
    if not len(pauses):
        return stamps
    ends = np.full(len(stamps), stamps[0], np.int64)
    k, c = rows.kernels, rows.copies
    spans = [(k.pid, k.start_ns, k.end_ns), (c.pid, c.start_ns, c.end_ns)]
    for n, (pid, start, end) in enumerate(spans):
        step = np.searchsorted(stamps, start, "left") if launched is None else launched[n]
        mine = (pid == record.pid) & (step >= 0) & (step < len(stamps))
        np.maximum.at(ends, step[mine], end[mine])
    moved = stamps.copy()
    moved[pauses - 1] = np.clip(ends[pauses - 1], stamps[pauses - 1], stamps[pauses])
    return moved


def _device_bounds(rows: TraceRows, record: RoundRecord, steps: _Steps) -> Ints:
    none = np.iinfo(np.int64).min
    bounds = np.full(len(record.stamps_ns), none, np.int64)
    for step, end in zip(steps, (rows.kernels.end_ns, rows.copies.end_ns), strict=True):
        np.maximum.at(bounds, step[step >= 0], end[step >= 0])
    # A pause has no work to end with, and a step that was not recorded has none: they end when the
    # host goes on, or the next step would take their time.
    idle = np.flatnonzero(bounds[1:] == none) + 1
    bounds[idle] = np.array(record.stamps_ns, np.int64)[idle]
    return np.maximum.accumulate(np.maximum(bounds, record.prefill_start_ns))


def _check_synchronous(record: RoundRecord) -> Check:
    if record.synchronous:
        return Check("synchronous", True, "the engine waits for the device each step")
    return Check("synchronous", False, "the engine runs ahead of the device")


def _check_time(
    rows: TraceRows, record: RoundRecord, stamps: Ints, timed: _Steps, error_ns: int
) -> list[Check]:
    """What holds if each step's work ended before its stamp and clocks differ by <= ``error_ns``.

    Then work of step i ends by stamp i + error and work of step i + 1 starts after stamp i - error:
    a row that breaks both refutes it, a row that fits both could be in either step.
    """
    start, end = _extent(rows, record)
    after_start = np.searchsorted(stamps, start + error_ns, "right")
    before_end = np.searchsorted(stamps, end - error_ns, "left")
    across = int(np.count_nonzero(after_start < before_end))
    either = int(np.count_nonzero(after_start > before_end))
    late = int(np.count_nonzero((start > stamps[-1] + error_ns) & (start <= record.end_ns)))
    # A lag of whole steps crosses no stamp, but leaves the first ones without work.
    done = np.concatenate(timed)
    per_step = np.bincount(done[done >= 0], minlength=len(stamps))
    first = int(record.prefill_start_ns >= stamps[0])  # a foreign trace: prefill is not known
    per_step[_pauses(record)] = 1  # nothing runs in a pause
    empty = int(np.count_nonzero(per_step[first:] == 0))
    return [
        Check(
            "across", not across, f"{_count(across, 'kernel or copy ran', 'ran')} across a stamp"
        ),
        Check(
            "either",
            not either,
            f"{_count(either, 'kernel or copy lies', 'lie')} within the clock error of a stamp "
            f"({error_ns / 1e3:.3g} µs)",
        ),
        Check(
            "late",
            not late,
            f"{_count(late, 'kernel or copy began', 'began')} after the last stamp",
        ),
        Check("empty", not empty, f"{empty} of {len(stamps)} steps (prefill included) ran no work"),
    ]


def _count(number: int, one: str, verb: str) -> str:
    return f"{number or 'no'} {one}" if number <= 1 else f"{number} kernels or copies {verb}"


def _extent(rows: TraceRows, record: RoundRecord) -> tuple[Ints, Ints]:
    """Start and end of the process' kernels and copies from the start of prefill on."""
    k, c = rows.kernels, rows.copies
    pid = np.concatenate([k.pid, c.pid])
    start = np.concatenate([k.start_ns, c.start_ns])
    end = np.concatenate([k.end_ns, c.end_ns])
    mine = (pid == record.pid) & (start >= record.prefill_start_ns)
    return start[mine], end[mine]


def _check_launches(
    rows: TraceRows,
    record: RoundRecord,
    stamps: Ints,
    timed: _Steps,
    launched: _Steps,
    error_ns: int,
) -> Check:
    """Every decode kernel was launched within the step that it ran in."""
    api = rows.api
    # A launch this close to a stamp may be in either step: it proves nothing.
    first = np.searchsorted(stamps, api.start_ns - error_ns, "left")
    near = first < np.searchsorted(stamps, api.start_ns + error_ns, "right")
    unsure = api.correlation[near & (api.pid == record.pid)]
    sure = ~np.isin(rows.kernels.correlation, unsure)
    both = sure & (timed[0] > 0) & (launched[0] >= 0)
    wrong = int(np.count_nonzero(both & (timed[0] != launched[0])))
    detail = f"{wrong or 'no'} kernel{'s' * (wrong > 1)} launched in another step than it ran in"
    return Check("launches", not wrong, detail)


def _check_matched(rows: TraceRows, record: RoundRecord, launched: _Steps) -> Check:
    k = rows.kernels
    inside = (k.pid == record.pid) & (k.start_ns >= record.prefill_start_ns)
    inside &= k.start_ns <= record.end_ns
    known = np.isin(k.correlation[inside], rows.api.correlation)
    missing, total = int(np.count_nonzero(~known)), len(known)
    detail = f"{missing} of {total} kernels have no launch record"
    return Check("matched", missing <= UNMATCHED_LIMIT * total, detail)
