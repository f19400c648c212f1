"""What a trace does not hold: unread tables, unusable times, lost records. Nothing goes unnoticed.

Work that occupies the device and is not read makes busy and idle unknown. Lost records make the
busy time a lower bound, so idle is *at most* what is seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from llmprof.records import RoundRecord, Unavailable
from llmprof.runfile.trace.rows import ApiRows, Ints, TraceRows

_LAUNCH = re.compile(r"(cuda|cu)(Launch(Cooperative)?Kernel|GraphLaunch|Launch(Grid)?(_|$))")
_CAPTURE_BEGIN, _CAPTURE_END = "StreamBeginCapture", "StreamEndCapture"


@dataclass(frozen=True)
class Quality:
    """Of the rows of one round."""

    doubt: Unavailable | None
    """Why busy and idle are not known."""
    at_most: str
    """Why idle is an upper bound; empty: it is not."""
    warnings: tuple[str, ...]
    launches: int
    """Calls in the decode steps and the prefill that should have started work."""
    without_work: int
    """Those of which no record of the device was found."""


def check(rows: TraceRows, record: RoundRecord, lost: str = "") -> Quality:
    """Look at what was read for a round.

    Args:
        lost: what the recording itself says about lost records.
    """
    warnings = []
    doubt = None
    if rows.unread:
        named = ", ".join(f"{table} ({count} rows)" for table, count in rows.unread.items())
        doubt = Unavailable(f"GPU work that is not read may fill the gaps: {named}")
        warnings.append(f"busy and idle are n/a: {doubt.reason}")
    for tally in rows.tallies:
        if tally.unusable:
            what = tally.table.removeprefix("CUPTI_ACTIVITY_KIND_")
            warnings.append(
                f"{tally.unusable} of {tally.rows - tally.elsewhere} rows of {what} have no usable"
                " time (no number, zero, or an end before the start): left out"
            )
    launches, without = launches_without_work(rows, record)
    reasons = [lost] if lost else []
    if without:
        reasons.append(f"{without} of {launches} launches have no record of the GPU's work")
    unusable = sum(t.unusable for t in rows.tallies if not t.table.endswith("_RUNTIME"))
    if unusable:
        reasons.append(f"{unusable} records of GPU work have no usable time")
    at_most = "; ".join(reasons)
    if reasons:
        warnings.append(f"idle is at most what is shown: {at_most}")
    return Quality(doubt, at_most, tuple(warnings), launches, without)


def launches_without_work(rows: TraceRows, record: RoundRecord) -> tuple[int, int]:
    """(launch calls of the round, those whose work was not recorded).

    Calls that failed, that were made inside another launch call (runtime and driver), or while
    their thread captured a graph start nothing. A launch behind the last one whose work is there is
    judged only if the device had nothing to do by then: a recording may end before its backlog.
    """
    api = rows.api
    kinds = {number: _LAUNCH.match(name) is not None for number, name in api.names.items()}
    known = np.array([kinds.get(int(n), False) for n in np.unique(api.name_id)], np.bool_)
    if not len(api) or not known.any():
        return 0, 0
    launch = known[np.unique(api.name_id, return_inverse=True)[1]]
    launch &= (api.pid == record.pid) & (api.start_ns >= record.prefill_start_ns)
    launch &= (api.start_ns < record.end_ns) & (api.correlation != 0)
    if len(api.result) == len(api):
        launch &= api.result == 0
    if not launch.any():
        return 0, 0
    work = np.concatenate([rows.kernels.correlation, rows.copies.correlation, rows.later])
    if not np.isin(api.correlation[launch], work).any():
        # Correlations of another kind of trace: nothing can be said from them.
        return int(np.count_nonzero(launch)), 0
    chosen = np.flatnonzero(launch)
    chosen = chosen[_outermost(api, chosen)]
    chosen = chosen[~_captured(api, chosen)]
    found = np.isin(api.correlation[chosen], work)
    if found.any():
        # Behind the last launch whose work is there: its work may come after all that was recorded,
        # but not where the device had nothing left to do.
        behind = np.arange(len(found)) > np.flatnonzero(found)[-1]
        done = max(
            (int(end.max()) for end in (rows.kernels.end_ns, rows.copies.end_ns) if len(end)),
            default=record.end_ns,
        )
        waits = behind & ((api.start_ns[chosen] <= done) | (rows.complete_ns is not None))
        chosen, found = chosen[~waits], found[~waits]
    return len(chosen), int(np.count_nonzero(~found))


def _outermost(api: ApiRows, chosen: Ints) -> Ints:
    """Which of the launch calls lie in no other launch call of their thread."""
    outer = np.ones(len(chosen), np.bool_)
    for thread in np.unique(api.tid[chosen]):
        mine = np.flatnonzero(api.tid[chosen] == thread)
        ends = np.maximum.accumulate(api.end_ns[chosen[mine]])
        outer[mine[1:]] = api.end_ns[chosen[mine[1:]]] > ends[:-1]
    found: Ints = np.flatnonzero(outer)
    return found


def _captured(api: ApiRows, chosen: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Of every call: did its thread capture a graph meanwhile?"""
    inside = np.zeros(len(chosen), np.bool_)
    begins = [n for n, name in api.names.items() if _CAPTURE_BEGIN in name]
    ends = [n for n, name in api.names.items() if _CAPTURE_END in name]
    for thread in np.unique(api.tid[chosen]) if begins else ():
        of_thread = api.tid == thread
        begun = api.start_ns[of_thread & np.isin(api.name_id, begins)]
        ended = api.start_ns[of_thread & np.isin(api.name_id, ends)]
        mine = np.flatnonzero(api.tid[chosen] == thread)
        at = api.start_ns[chosen[mine]]
        inside[mine] = np.searchsorted(begun, at, "right") > np.searchsorted(ended, at, "right")
    return inside
