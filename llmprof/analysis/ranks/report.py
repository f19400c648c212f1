"""What is said of a group of ranks: lateness by step, each collective, a verdict, a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.sweep import Spans
from llmprof.analysis.ranks.alone import alone
from llmprof.analysis.ranks.lateness import Lateness, lateness, margin_ns
from llmprof.analysis.ranks.lines import (
    QUICKEST_PERCENT,
    collective_line,
    occupied,
    payload,
    without,
)
from llmprof.analysis.ranks.matched.clocks import ClockFit
from llmprof.analysis.ranks.matched.matching import Matched, match
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.parts import Parts, split
from llmprof.analysis.ranks.reasons import reason
from llmprof.analysis.ranks.results import CollectiveLine, RankLine, RanksReport, Verdict
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import Ints

UNEVEN_SHARE = 0.05
"""Of the step, as a mean: a few disturbed steps of balanced ranks make 2 %."""


def report(
    members: Sequence[Member],
    title: str,
    bytes_of: Mapping[str, int],
    world: int,
    same_host: bool,
) -> RanksReport | Unavailable:
    """Everything about one group.

    Args:
        members: by rank; the first one with steps lends its steps to all.
        bytes_of: kind of collective → bytes of each one in a step, as nccl-tests count them.
        world: ranks that there are.
    """
    members = sorted(members, key=lambda m: m.rank)
    stepping = [m for m in members if len(m.bounds_ns) > 1]
    if not stepping:
        return Unavailable("no rank has decode steps")
    if len(members) == 1:
        return alone(members[0], title, bytes_of, world)
    members = [stepping[0], *(m for m in members if m is not stepping[0])]
    matched = match(members, same_host)
    if isinstance(matched, Unavailable):
        return matched
    parts = split(matched)
    bounds = members[0].bounds_ns
    every = len(bounds) - 1
    seen = _seen(members[0], matched)
    if not seen.any():
        return Unavailable("no decode step is whole in the trace of every rank")
    step = _step(matched.end_ns[0], bounds)
    step = np.where(np.concatenate([[False], seen])[step], step, 0)
    inside = step > 0
    steps = int(np.count_nonzero(seen))
    late = np.stack([_per_step(step, parts.late_ns[n], every) for n in range(len(members))])
    some = np.bincount(step[inside], minlength=every + 1)[1:] > 0
    row = np.where(late.max(0) > 0, late.argmax(0), -1)
    critical = tuple(members[r].rank if r >= 0 else -1 for r in row.tolist())
    lines = [
        _line(n, members, matched, parts, inside, late, row, seen) for n in range(len(members))
    ]
    length = np.diff(bounds)[seen]
    step_ms = float(length.mean()) / 1e6
    # Of the usual step: one that a profiler or a compiler held up for half a second is none.
    usual_ns = float(np.median(length))
    margin = margin_ns(usual_ns, _feigned_ns(matched, inside, steps))
    order = np.argsort([m.rank for m in members])
    found = lateness(late[order][:, some], margin)
    verdict, words = _verdict([lines[n] for n in order], found, step_ms)
    why = None
    if found is not None and found.late:
        why = reason(members, matched, parts, int(order[found.row]), inside, steps)
    if why is not None:
        words += f": {why.words}"
    spans = [_wait_spans(members[n], matched, parts, n) for n in range(len(members))]
    clocks = tuple(c for c in matched.clocks if c is not None)
    return RanksReport(
        title=title,
        world=max(world, len(members)),
        ranks=tuple(lines[n] for n in order),
        steps=steps,
        step_ms=step_ms,
        late_ns=late[order],
        critical=critical,
        verdict=verdict,
        words=words,
        reason=why,
        lateness=found,
        collectives=_collectives(matched, parts, inside, bytes_of, max(world, len(members)), steps),
        clocks=clocks,
        clock_words=_clock_words(clocks, same_host),
        notes=tuple(_notes(members, matched, world, inside, seen)),
        provenance="measured",
        members=tuple(members[n] for n in order),
        matched=matched,
        matched_rows=tuple(int(n) for n in order),
        wait_spans=tuple(spans[n] for n in order),
    )


def _step(end_ns: Ints, bounds: Ints) -> Ints:
    """Of each collective, by its end: the step from 1 on; 0: outside of all."""
    step = np.searchsorted(bounds, end_ns, "left")
    return np.where(step < len(bounds), step, 0).astype(np.int64)


def _seen(first: Member, matched: Matched) -> NDArray[np.bool_]:
    """Of each step: does it count, and is it whole on every rank? Recordings may begin and end in
    different steps: what lies outside of one of them is not known, and no idle time of that rank.

    Args:
        first: the rank whose steps they are.
    """
    bounds, own = first.bounds_ns, first.collectives
    counted = np.ones(len(bounds) - 1, bool) if first.counted is None else first.counted
    # Sorts that another rank never ran say nothing of where its recording ends.
    shared = np.isin(own.key, np.unique(matched.key))
    end = np.sort(own.end_ns[shared])
    begin, stop = matched.end_ns[0].min(), matched.end_ns[0].max()
    # Of the collectives that end in each step, which are the first and the last?
    after = np.searchsorted(end, bounds, "right")
    some = after[1:] > after[:-1]
    if not some.any():
        return counted
    earliest = end[np.minimum(after[:-1], len(end) - 1)]
    latest = end[np.maximum(after[1:], 1) - 1]
    between = (bounds[:-1] >= begin) & (bounds[1:] <= stop)
    whole: NDArray[np.bool_] = np.where(some, (earliest >= begin) & (latest <= stop), between)
    return counted & whole


def _per_step(step: Ints, values: Ints, steps: int) -> Ints:
    found = np.bincount(step, values.astype(np.float64), steps + 1)[1:]
    return np.rint(found).astype(np.int64)


def _line(
    n: int,
    members: Sequence[Member],
    matched: Matched,
    parts: Parts,
    inside: NDArray[np.bool_],
    late: Ints,
    critical: NDArray[np.intp],
    seen: NDArray[np.bool_],
) -> RankLine:
    member, clock = members[n], matched.clocks[n]
    bounds, steps = members[0].bounds_ns, int(np.count_nonzero(seen))
    own = bounds if clock is None else clock.to_own(bounds)
    start = member.collectives.start_ns[matched.index[n]]
    moves = start + parts.wait_ns[n]
    found = occupied(member, own, seen, (start, moves), (moves, moves + parts.transfer_ns[n]))
    return RankLine(
        rank=member.rank,
        name=member.name,
        pid=member.pid,
        device=member.device,
        wait_ms=float(parts.wait_ns[n][inside].sum()) / steps / 1e6,
        transfer_ms=float(parts.transfer_ns[n][inside].sum()) / steps / 1e6,
        **vars(found),
        late_ms=float(late[n].sum()) / steps / 1e6,
        late_steps=int(np.count_nonzero(critical == n)),
        unmatched=matched.unmatched[n],
        steps=len(member.bounds_ns) - 1 if len(member.bounds_ns) else None,
    )


def _wait_spans(member: Member, matched: Matched, parts: Parts, n: int) -> Spans:
    start = member.collectives.start_ns[matched.index[n]]
    moves = start + parts.wait_ns[n]
    return without((start, moves), (moves, moves + parts.transfer_ns[n]))


def _verdict(
    lines: Sequence[RankLine], found: Lateness | None, step_ms: float
) -> tuple[Verdict, str]:
    """And in words. ``lines`` as the rows of ``found``."""
    if found is None or found.steps < found.needed:
        there = 0 if found is None else found.steps
        least = "" if found is None else f": {found.needed} at least"
        steps = "1 step" if there == 1 else f"{there} steps"
        return "unknown", f"{steps} with collectives cannot tell a late rank from chance{least}"
    line = lines[found.row]
    if found.late:
        return "late", (
            f"the others wait for {line.name} in {found.led / found.steps:.0%} of the steps,"
            f" {line.late_ms:.3f} ms a step ({line.late_ms / step_ms:.1%})"
        )
    total = sum(one.late_ms for one in lines)
    waits = f"{total:.3f} ms a step ({total / step_ms:.1%}) for one another"
    if total >= UNEVEN_SHARE * step_ms:
        return (
            "uneven",
            f"uneven: ranks wait {waits}, in some steps much and for no one rank always",
        )
    words = f"balanced: ranks wait {waits}"
    if found.excess_ns > 0:
        words += (
            f"; {line.name} is the last one by {found.excess_ns / 1e6:.3f} ms in the median step,"
        )
        margin = f"{found.margin_ns / 1e6:.3f} ms"
        if found.excess_ns <= found.margin_ns:
            words += f" where up to {margin} is no lateness"
        else:
            words += (
                f" over {margin} in {found.over} of {found.steps}, which are too few, or too much"
                " alike, to tell it from chance"
            )
    return "balanced", words


def _feigned_ns(matched: Matched, inside: NDArray[np.bool_], steps: int) -> int:
    """What clocks that were left as they are may feign in a step: the difference in each of its
    collectives."""
    left = max((abs(c.left_ns) for c in matched.clocks if c is not None), default=0)
    return round(left * int(np.count_nonzero(inside)) / steps)


def _collectives(
    matched: Matched,
    parts: Parts,
    inside: NDArray[np.bool_],
    bytes_of: Mapping[str, int],
    world: int,
    steps: int,
) -> tuple[CollectiveLine, ...]:
    found = []
    there = tuple(key for n, key in enumerate(matched.keys) if (matched.key[inside] == n).any())
    for number, key in enumerate(matched.keys):
        mine = inside & (matched.key == number)
        count = int(np.count_nonzero(mine))
        if not count:
            continue
        whole_ns = parts.whole_ns[mine]
        size = payload(key, there, bytes_of)
        found.append(
            collective_line(
                key,
                count,
                steps,
                float(np.median(whole_ns)),
                float(np.percentile(whole_ns, QUICKEST_PERCENT)),
                float(parts.wait_ns[:, mine].mean()),
                float(parts.wait_ns[:, mine].max()),
                size,
                world,
            )
        )
    found.sort(key=lambda line: -line.count * (line.transfer_us + line.wait_us))
    return tuple(found)


def _clock_words(clocks: Sequence[ClockFit], same_host: bool) -> str:
    error = max((c.error_ns for c in clocks), default=0)
    residual = max((c.residual_ns for c in clocks), default=0)
    moved = [c for c in clocks if c.moved]
    how = f"ends of the same collective agree within {residual / 1e3:.1f} µs (95 %)"
    if not moved:
        first = "one clock: " if same_host else "the clocks agree: "
        return f"{first}{how}; no offset beyond ±{error / 1e3:.1f} µs is possible"
    most = max((abs(c.offset_ns) for c in moved), default=0)
    drift = max((abs(c.drift_ppb) for c in moved), default=0.0)
    text = f"clocks moved by up to {most / 1e3:.1f} µs so that their collectives agree"
    if drift:
        text += f", drift {drift / 1e3:.3f} µs a second"
    return f"{text}; {how}; error at most {error / 1e3:.1f} µs"


def _notes(
    members: Sequence[Member],
    matched: Matched,
    world: int,
    inside: NDArray[np.bool_],
    seen: NDArray[np.bool_],
) -> list[str]:
    found = []
    if world > len(members):
        there = ", ".join(str(m.rank) for m in members)
        found.append(
            f"ranks {there} of {world} were recorded: waiting for the others counts as transfer"
        )
    counts = {len(m.bounds_ns) - 1 for m in members if len(m.bounds_ns) > 1}
    if len(counts) > 1:
        numbers = ", ".join(
            f"{m.name} {len(m.bounds_ns) - 1}" for m in members if len(m.bounds_ns) > 1
        )
        found.append(f"ranks trace different numbers of steps: {numbers}")
    counted = members[0].counted
    whole = len(seen) if counted is None else int(np.count_nonzero(counted))
    if (steps := int(np.count_nonzero(seen))) < whole:
        found.append(f"means are over the {steps} of {whole} steps that every rank's trace has")
    for member, lost in zip(members, matched.unmatched, strict=True):
        if lost:
            found.append(f"{lost} collectives of {member.name} are not on every rank: left out")
    if not all(m.from_environment for m in members):
        found.append("ranks are numbered by GPU: the program did not say them")
    if any(op.fused for m in members for op in m.collectives.operations):
        found.append(
            "some all-reduces have other arithmetic in their kernel: their wait and transfer are"
            " bounds"
        )
    if any(m.whole_graphs for m in members):
        found.append(
            "CUDA graphs were traced as a whole: what they communicate counts as other work"
        )
    if not inside.any():
        found.append("no collective lies in a decode step")
    return found
