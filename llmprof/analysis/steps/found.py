"""From steps that were found in the device's own work to rounds of them."""

from __future__ import annotations

import numpy as np

from llmprof.analysis.steps.detect import Detection
from llmprof.analysis.steps.events import Events
from llmprof.analysis.steps.stretch import Ends, Stretch
from llmprof.records.steps import (
    StepLabel,
    StepPhase,
    StepsFound,
)
from llmprof.runfile.trace.rows import Ints

LONGER = 1.2
"""A cycle with so many times the work of a decode step is a prefill, if it is none."""


def stretches(events: Events, found: Detection) -> tuple[tuple[Stretch, ...], ...]:
    """Groups of cycles with long pauses between them, from the first group that decodes to the
    last; what lies between two cycles of a group is a stretch of its own.

    A step lasts from its first work on the device to the first work of the next one; before
    something that is no decode step it ends with its own work and the usual gap.
    """
    mine = np.flatnonzero(found.stream == found.stream[0])
    begin, end, decode = found.begin[mine], found.end[mine], found.decode[mine]
    finish = int(events.end_ns.max())
    start_ns = events.start_ns[begin]
    next_ns = np.concatenate([events.start_ns, [finish]])[end]
    done_ns = np.clip(_done(events, int(found.stream[0]))[end], start_ns + 1, None)
    done_ns = np.minimum(done_ns, np.maximum(next_ns, start_ns + 1))
    busy = events.busy_ns[end] - events.busy_ns[begin]
    usual = float(np.median(busy[decode]))
    joined = np.append(begin[1:] == end[:-1], False)
    plain = joined & np.append(decode[1:], False)
    ends = Ends.of(start_ns, done_ns, next_ns, decode & plain, plain)
    groups: list[list[Stretch]] = [[]]
    for n in range(len(mine)):
        phase: StepPhase = "decode"
        if not decode[n]:
            phase = "prefill" if busy[n] > LONGER * usual else "other"
        start, done, until = int(start_ns[n]), int(done_ns[n]), int(next_ns[n])
        last = n + 1 == len(mine)
        stop = until
        if last and until == finish:
            stop = done + ends.usual_ns  # nothing says how long the gap behind it was
        elif ends.parted(until - done, bool(plain[n])):
            stop = min(done + ends.usual_ns, until)
        groups[-1].append(Stretch(start, stop, StepLabel(phase)))
        if last:
            break
        if stop < until and ends.pause(until - done):
            groups.append([])
        elif stop < until:
            groups[-1].append(Stretch(stop, until, StepLabel("pause")))
        if not joined[n]:
            groups[-1].append(Stretch(until, int(start_ns[n + 1]), StepLabel("other")))
    decoding = [n for n, part in enumerate(groups) if _decodes(part)]
    return tuple(tuple(part) for part in groups[decoding[0] : decoding[-1] + 1] if part)


def _done(events: Events, stream: int) -> Ints:
    """When all work before a row has ended, for every row and behind the last one; of a stream that
    decodes on its own, its own work."""
    ends = events.end_ns if stream < 0 else np.where(events.stream == stream, events.end_ns, 0)
    reach: Ints = np.concatenate([events.start_ns[:1], np.maximum.accumulate(ends)])
    return reach


def _decodes(part: list[Stretch]) -> bool:
    return any(stretch.label.phase == "decode" for stretch in part)


def _other_stream(events: Events, found: Detection, stream: int) -> str:
    """What a stream does that decodes beside the one whose steps are shown."""
    mine = found.decode & (found.stream == stream)
    begin, end = found.begin[mine], found.end[mine]
    own = np.concatenate([[0], np.cumsum(events.stream == stream)])
    last = np.minimum(end, len(events) - 1)
    wall = float(np.median(events.start_ns[last] - events.start_ns[begin])) if len(begin) else 0.0
    size = float(np.median(own[end] - own[begin])) if len(begin) else 0.0
    return (
        f"stream {stream} decodes on its own, {len(begin):,} steps of {size:,.0f} kernels and"
        f" copies in {wall / 1e6:.3f} ms (medians): its work counts in the steps of stream"
        f" {found.streams[0]} that it runs in"
    )


def described(events: Events, found: Detection) -> StepsFound:
    """How the steps are known, or why there are none."""
    evidence = found.evidence
    if evidence is None:
        return StepsFound("none", found.reason, candidates=found.candidates)
    rest = int(np.count_nonzero(~found.decode))
    left = [f"{rest:,} other stretches (prefill, change-overs)"] if rest else []
    left += [_other_stream(events, found, stream) for stream in found.streams[1:]]
    return StepsFound(
        "detected",
        f"found in the device's own work: {evidence.repeats:,} times {evidence.period:,} kernels"
        f" and copies, {evidence.coverage:.0%} of the time; {', '.join(evidence.signs)}",
        (
            ("period", evidence.period),
            ("repeats", evidence.repeats),
            ("coverage", round(evidence.coverage, 4)),
            ("anchor", evidence.anchor),
            ("cut", evidence.cut),
            ("signs", ", ".join(evidence.signs)),
        ),
        tuple(left),
        found.candidates,
    )
