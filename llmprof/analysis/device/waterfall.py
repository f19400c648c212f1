"""From engine A to engine B in ms a step (a token of each sequence), category by category.

Parts are means over the traced decode steps, since means add up and medians do not. They are whole
ns by the method of largest remainders, so the parts of an engine add up to its step and the
differences to the difference of the steps, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmprof.analysis.device.kernels import TracedRound, category_ns
from llmprof.analysis.device.naming.categories import COMMUNICATION, IDLE, WHOLE_GRAPH
from llmprof.analysis.device.sweep import Spans, Timeline, covered_ns
from llmprof.records import Maybe, Provenance, Unavailable

Basis = Literal["traced", "timing"]
WAIT, TRANSFER = "communication: wait", "communication: transfer"
"""The two parts of ``communication``, where the ranks' clocks tell them apart."""
ALL_WORK = "all GPU work"
"""The one category of a waterfall where work cannot be split."""


@dataclass(frozen=True)
class StepParts:
    """The mean decode step of one engine on its primary device; the parts add up to ``step_ns``."""

    label: str
    steps: int
    """Traced decode steps that the means are over."""
    step_ns: int
    parts_ns: dict[str, int]
    """Category (``idle`` included) → ns."""


@dataclass(frozen=True)
class WaterfallPart:
    """One category's way from A to B; ``delta_ns < 0``: B spends less."""

    category: str
    a_ns: int
    b_ns: int
    delta_ns: int

    @property
    def delta_ms(self) -> float:
        return self.delta_ns / 1e6


@dataclass(frozen=True)
class Waterfall:
    """The step of engine ``a`` turned into that of ``b``; the parts add up to ``delta_ns``."""

    a: str
    b: str
    basis: Basis
    """``traced``: as traced. ``timing``: scaled to the steps of the timing pass."""
    provenance: Provenance
    """``measured`` as traced, ``modelled`` when scaled."""
    note: str
    """How the numbers came about, one sentence."""
    a_ns: int
    b_ns: int
    delta_ns: int
    parts: tuple[WaterfallPart, ...]
    """The largest change first."""


def step_parts(
    traced: TracedRound, label: str, waits: Spans | None = None
) -> StepParts | Unavailable:
    """The mean decode step of a traced round.

    Args:
        waits: when the primary device waited for other ranks; communication is then two parts.
    """
    timeline = traced.timeline
    if isinstance(timeline, Unavailable):
        return timeline
    totals = category_ns(traced)
    if waits is not None and COMMUNICATION in totals:
        wait = _waited_ns(traced, timeline, waits)
        totals[TRANSFER] = totals.pop(COMMUNICATION) - wait
        totals[WAIT] = wait
    wall = int(timeline.wall_ns().sum())
    totals[IDLE] = wall - sum(totals.values())
    step_ns = round(wall / timeline.count)
    return StepParts(label, timeline.count, step_ns, apportion(step_ns, totals))


def _waited_ns(traced: TracedRound, timeline: Timeline, waits: Spans) -> int:
    """Of the pieces of communication, what lies in a wait."""
    table = np.array(
        [traced.categories.get(n) == COMMUNICATION for n in range(len(timeline.names))], bool
    )
    there = table[timeline.label]
    return int(covered_ns([waits], timeline.start_ns[there], timeline.end_ns[there]).sum())


def waterfall(a: StepParts | Unavailable, b: StepParts | Unavailable) -> Waterfall | Unavailable:
    """From a to b as traced."""
    if isinstance(a, Unavailable):
        return a
    if isinstance(b, Unavailable):
        return b
    means = "means over " if max(a.steps, b.steps) > 1 else ""
    note = f"{means}{_steps(a, b)}, tracers attached"
    return _between(a, b, "traced", "measured", note)


def timing_waterfall(
    a: StepParts | Unavailable, b: StepParts | Unavailable, a_step_ns: Maybe, b_step_ns: Maybe
) -> Waterfall | Unavailable:
    """The same for the steps without tracers: work as traced, idle as what is left of the step.

    The tracers slow the host down, not the kernels: on an H100 the kernels of a graph of 587 nodes
    took the same 6.31 ms that the whole untraced step took, and all of the 1.2 ms on top was idle
    time before the graph's first kernel.

    Args:
        a_step_ns: mean step of ``a`` in the timing pass, at the positions that were traced.
    """
    if isinstance(a, Unavailable):
        return a
    if isinstance(b, Unavailable):
        return b
    if isinstance(a_step_ns, Unavailable):
        return a_step_ns
    if isinstance(b_step_ns, Unavailable):
        return b_step_ns
    (a_timed, a_fits), (b_timed, b_fits) = _refilled(a, a_step_ns), _refilled(b, b_step_ns)
    note = f"kernel times from the traced pass; idle = untraced step − kernels; {_positions(a, b)}"
    note += f", there {b_step_ns / max(1.0, a_step_ns):.2f}× as long"
    tight = [p.label for p, fits in ((a, a_fits), (b, b_fits)) if not fits]
    if tight:
        note += f"; the traced work of {' and '.join(tight)} is longer than that step: scaled to it"
    return _between(a_timed, b_timed, "timing", "modelled", note)


def part_name(fall: Waterfall, part: WaterfallPart) -> str:
    """The category as shown; idle time that was not measured says so."""
    modelled = part.category == IDLE and fall.basis == "timing"
    return f"{part.category} (modelled)" if modelled else part.category


def names(fall: Waterfall) -> tuple[str, str]:
    """Both sides' labels, told apart where they are one: of a program that was recorded twice."""
    return (f"{fall.a} (A)", f"{fall.b} (B)") if fall.a == fall.b else (fall.a, fall.b)


def verdict_words(fall: Waterfall, limit: int = 3, smallest_ms: float = 0.005) -> str:
    """Who takes how much longer, and the largest parts of that: ``exllama takes 5.20 ms more a
    step: 3.77 ms quantised GEMV/GEMM, 1.24 ms idle (modelled), −0.18 ms attention``. Labels as
    recorded."""
    a, b = names(fall)
    slower, faster = (b, a) if fall.delta_ns >= 0 else (a, b)
    way = 1 if fall.delta_ns >= 0 else -1
    seen = [p for p in fall.parts if abs(p.delta_ms) >= smallest_ms][:limit]
    if not seen:
        return f"no category differs by {smallest_ms:g} ms"
    parts = ", ".join(
        f"{'−' if way * p.delta_ns < 0 else ''}{abs(p.delta_ms):.2f} ms {part_name(fall, p)}"
        for p in seen
    )
    if abs(fall.delta_ns) < smallest_ms * 1e6:
        return f"{b} takes as long a step as {a}: {parts}"
    return f"{slower} takes {abs(fall.delta_ns) / 1e6:.2f} ms more a step than {faster}: {parts}"


def apportion(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """``total`` in whole parts proportional to the weights (≥ 0), adding up to it exactly.

    Each part is off by less than 1 (largest remainders; integers all the way). Without any weight
    everything is idle.
    """
    whole = sum(weights.values())
    if whole <= 0:
        return {IDLE: total}
    split = {name: divmod(total * weight, whole) for name, weight in weights.items()}
    left = total - sum(part for part, _ in split.values())
    favoured = sorted(split, key=lambda name: -split[name][1])[:left]
    return {name: part + (name in favoured) for name, (part, _) in split.items()}


def _refilled(parts: StepParts, step_ns: float) -> tuple[StepParts, bool]:
    """The parts in a step of another length: idle takes the difference, as far as it reaches."""
    wanted = round(step_ns)
    work = {name: ns for name, ns in parts.parts_ns.items() if name != IDLE}
    idle = wanted - sum(work.values())
    if idle >= 0:
        return StepParts(parts.label, parts.steps, wanted, {**work, IDLE: idle}), True
    filled = {IDLE: 0, **apportion(wanted, work)}
    return StepParts(parts.label, parts.steps, wanted, filled), False


def _between(
    a: StepParts, b: StepParts, basis: Basis, provenance: Provenance, note: str
) -> Waterfall:
    whole = [p.label for p in (a, b) if p.parts_ns.get(WHOLE_GRAPH)]
    if whole:
        # Kernels on one side and whole graphs on the other: no category of both can be compared.
        note += (
            f"; work is not split by category: CUDA graphs of {' and '.join(whole)} were traced as"
            " a whole (--cuda-graph-trace=node shows their kernels)"
        )
        a, b = _unsplit(a), _unsplit(b)
    names = dict.fromkeys([*a.parts_ns, *b.parts_ns])
    parts = []
    for name in names:
        before, behind = a.parts_ns.get(name, 0), b.parts_ns.get(name, 0)
        parts.append(WaterfallPart(name, before, behind, behind - before))
    parts.sort(key=lambda p: -abs(p.delta_ns))
    return Waterfall(
        a.label,
        b.label,
        basis,
        provenance,
        note,
        a.step_ns,
        b.step_ns,
        b.step_ns - a.step_ns,
        tuple(parts),
    )


def _unsplit(parts: StepParts) -> StepParts:
    idle = parts.parts_ns.get(IDLE, 0)
    work = sum(parts.parts_ns.values()) - idle
    return StepParts(parts.label, parts.steps, parts.step_ns, {ALL_WORK: work, IDLE: idle})


def _positions(a: StepParts, b: StepParts) -> str:
    """A waterfall is about the traced positions; the ratio of tok/s is about whole rounds."""
    if a.steps == b.steps:
        return f"steps 1–{a.steps} of a round"
    return f"steps 1–{a.steps} and 1–{b.steps} of a round"


def _steps(a: StepParts, b: StepParts) -> str:
    if a.steps == b.steps:
        return f"{a.steps} traced decode steps each" if a.steps > 1 else "1 traced decode step each"
    return f"{a.steps} and {b.steps} traced decode steps"
