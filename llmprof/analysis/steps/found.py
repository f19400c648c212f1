"""From steps that were found in the device's own work to rounds of them."""

from __future__ import annotations

import numpy as np

from llmprof.analysis.steps.detect import Detection
from llmprof.analysis.steps.events import Events
from llmprof.analysis.steps.marked import PAUSE, Stretch
from llmprof.records.steps import (
    StepLabel,
    StepPhase,
    StepsFound,
)

LONGER = 1.2
"""A cycle with so many times the work of a decode step is a prefill, if it is none."""


def stretches(events: Events, found: Detection) -> tuple[tuple[Stretch, ...], ...]:
    """Rounds of cycles; what lies between two is a stretch of its own. A step lasts from its
    first work on the device to the first work of the next one."""
    mine = np.flatnonzero(found.stream == found.stream[0])
    begin, end = found.begin[mine], found.end[mine]
    decode = found.decode[mine]
    finish = int(events.end_ns.max())
    start_ns = events.start_ns[begin]
    edge = np.concatenate([events.start_ns, [finish]])
    end_ns = edge[end]
    busy = events.busy_ns[end] - events.busy_ns[begin]
    usual = float(np.median(busy[decode]))
    typical = max(1.0, float(np.median((end_ns - start_ns)[decode])))
    reach = np.concatenate([events.before_ns, [finish]])
    rounds: list[list[Stretch]] = [[]]
    for n in range(len(mine)):
        until = int(end_ns[n])
        done = int(max(start_ns[n] + 1, min(until, reach[end[n]])))
        paused = until - done > PAUSE * typical
        phase: StepPhase = "decode"
        if not decode[n]:
            phase = "prefill" if busy[n] > LONGER * usual else "other"
        rounds[-1].append(Stretch(int(start_ns[n]), done if paused else until, StepLabel(phase)))
        if paused:
            rounds.append([])
        elif n + 1 < len(mine) and begin[n + 1] > end[n]:
            if start_ns[n + 1] - until > PAUSE * typical:
                rounds.append([])
            else:
                rounds[-1].append(Stretch(until, int(start_ns[n + 1]), StepLabel("other")))
    return tuple(tuple(part) for part in rounds if part)


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
