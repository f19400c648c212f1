"""Why a rank comes late to its collectives: its own kernels, its launches, or its host.

Between two collectives that all ranks share, every rank has the same work to do, so the stretch
from the end of the one before to the start of this one is compared: what the late rank has more
than the others of busy time is its kernels', and what it has more of idle time is the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.sweep import Spans, covered_ns
from llmprof.analysis.ranks.matched.matching import Matched
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.parts import Parts
from llmprof.plaintext import one_line
from llmprof.runfile.trace.rows import Ints

Why = Literal["kernels", "clock", "launches", "host", "idle"]
"""``idle``: launches or host; which of them is not known without API calls. ``clock``: its kernels,
on a GPU whose clock is lower than the others'."""


@dataclass(frozen=True)
class Reason:
    """What makes one rank late. Times are ns a step, means."""

    rank: int
    why: Why
    busy_ns: int
    """More busy time than the others' median before the collectives that it was last at."""
    idle_ns: int
    host_ns: int | None
    """Of ``idle_ns``: the call that ended the idle time had not begun; ``None``: not known."""
    kernel: str
    """The kernel with the most time more than on the others, as recorded; may be empty."""
    kernel_ns: int
    words: str
    before: Spans
    """The stretches before the collectives that it was last at, on its own clock."""


def reason(
    members: Sequence[Member],
    matched: Matched,
    parts: Parts,
    row: int,
    inside: NDArray[np.bool_],
    steps: int,
) -> Reason | None:
    """Of the rank in ``row``, over the collectives of the steps (``inside``) that it was last at;
    ``None`` where it never was."""
    last = np.flatnonzero(inside & (parts.late_ns[row] > 0))
    meets = np.where(matched.alone, -1, np.arange(matched.count))
    # The one before at which all ranks were together; the first of all has none.
    earlier = np.maximum.accumulate(np.concatenate([[-1], meets[:-1]]))
    last = last[earlier[last] >= 0]
    if not len(last) or not steps:
        return None
    weight = parts.late_ns[row, last]
    # Those that make up most of the lateness: the rest is the jitter of balanced ranks.
    order = np.argsort(-weight)
    kept = order[: int(np.searchsorted(np.cumsum(weight[order]), 0.99 * weight.sum())) + 1]
    chosen = np.sort(last[kept])
    begin = np.empty((len(members), len(chosen)), np.int64)
    finish = np.empty_like(begin)
    busy = np.empty_like(begin)
    for n, member in enumerate(members):
        own = member.collectives
        begin[n] = own.end_ns[matched.index[n, earlier[chosen]]]
        finish[n] = np.maximum(own.start_ns[matched.index[n, chosen]], begin[n])
        busy[n] = covered_ns([member.other_spans], begin[n], finish[n])
    idle = finish - begin - busy
    # What is not looked at (jitter, the first of all collectives) is taken to be alike.
    scale = (
        float(parts.late_ns[row, inside].sum()) / float(parts.late_ns[row, chosen].sum()) / steps
    )
    others = [n for n in range(len(members)) if n != row]
    more_busy = round(float((busy[row] - np.median(busy[others], 0)).sum()) * scale)
    more_idle = round(float((idle[row] - np.median(idle[others], 0)).sum()) * scale)
    before = begin[row], finish[row]
    name, name_ns = _kernel(members, row, begin, finish, scale)
    if more_busy >= more_idle:
        words = f"its kernels: {more_busy / 1e6:.3f} ms a step more than the other ranks"
        if name:
            words += f", {name_ns / 1e6:.3f} ms of it in {one_line(name, 60)}"
        return Reason(
            members[row].rank, "kernels", more_busy, more_idle, None, name, name_ns, words, before
        )
    host = _host(members[row], begin[row], finish[row])
    if host is None:
        why: Why = "idle"
        words = (
            f"its GPU had nothing to do for {more_idle / 1e6:.3f} ms a step more than the others;"
            " launches or host is not known without API calls (--trace full)"
        )
        host_ns = None
    else:
        uncalled, total = host
        host_ns = min(more_idle, round(uncalled * scale))
        why = "host" if 2 * uncalled >= total else "launches"
        what = (
            "its host called the next launch that much later"
            if why == "host"
            else "its launches took that much longer to reach the GPU"
        )
        words = f"{more_idle / 1e6:.3f} ms a step more of idle GPU than the others: {what}"
    return Reason(members[row].rank, why, more_busy, more_idle, host_ns, "", 0, words, before)


def _kernel(
    members: Sequence[Member], row: int, begin: Ints, finish: Ints, scale: float
) -> tuple[str, int]:
    """The name whose time in the stretches exceeds the others' median the most."""
    totals: list[dict[str, int]] = []
    for n, member in enumerate(members):
        at = np.searchsorted(begin[n], member.start_ns, "right") - 1
        there = at >= 0
        there[there] &= member.start_ns[there] < finish[n][at[there]]
        there &= ~member.communicates
        duration = (member.end_ns - member.start_ns)[there]
        spent = np.bincount(member.label[there], duration, len(member.names))
        found: dict[str, int] = {}
        for label in np.flatnonzero(spent):
            text = member.names[int(label)]
            found[text] = found.get(text, 0) + int(spent[label])
        totals.append(found)
    more = {
        text: ns - int(np.median([t.get(text, 0) for i, t in enumerate(totals) if i != row]))
        for text, ns in totals[row].items()
    }
    best = max(more, key=lambda text: more[text], default="")
    return (best, round(more[best] * scale)) if best and more[best] > 0 else ("", 0)


def _host(member: Member, begin: Ints, finish: Ints) -> tuple[int, int] | None:
    """Of the longest idle stretch before each collective: ns before the call that launched what
    ends it, and its whole length; ``None`` where calls are not known."""
    ends = np.maximum.accumulate(member.end_ns)
    gap = member.start_ns[1:] - ends[:-1]
    wide = np.flatnonzero(gap > 0)
    if not len(wide):
        return None
    # A gap that ends in a stretch, the collective's own start included.
    closes = member.start_ns[1:][wide]
    at = np.searchsorted(begin, closes, "left") - 1
    there = at >= 0
    there[there] &= closes[there] <= finish[at[there]]
    wide, at = wide[there], at[there]
    if not len(wide):
        return None
    order = np.lexsort((-gap[wide], at))
    first = np.unique(at[order], return_index=True)[1]
    rows = wide[order][first]
    launch = member.launch_ns[rows + 1]
    known = launch >= 0
    if 2 * int(np.count_nonzero(known)) < len(rows):
        return None
    rows, launch = rows[known], launch[known]
    length = gap[rows]
    return int(np.clip(launch - ends[rows], 0, length).sum()), int(length.sum())
