"""From one engine's step to another's: verdict, waterfall, and the kernels of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmprof.analysis.device.naming.categories import IDLE
from llmprof.analysis.device.pairing import PairedKernels, pair_kernels
from llmprof.analysis.device.waterfall import (
    StepParts,
    Waterfall,
    part_name,
    verdict_words,
    waterfall,
)
from llmprof.analysis.timeline.axis import Lane as TimeLane
from llmprof.analysis.timeline.lod import LaneWork
from llmprof.analysis.view.frames.snapshot import PairView, Snapshot
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.records import Unavailable
from llmprof.tui.compare import roles
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_text, row, rule, width_of, wrap
from llmprof.tui.drawing.marks import category_letter, category_role
from llmprof.tui.view import CompareView, Lane, View, trace_or_why

_NAME: Final = 24
_NAMED: Final = 0.5
"""With less of the time in kernels of one name, kernels are paired by what they do."""
_LOW: Final = 30
"""Rows below which the waterfall has ``_MOST_PARTS`` lines."""
_MOST_PARTS: Final = 6
_SMALL: Final = 500
"""ns a step below which a change has no colour."""


@dataclass(frozen=True)
class Entry:
    """One kernel (or operator) in both engines; ``None`` where an engine has none of it."""

    name: str
    category: str
    a: tuple[float, float] | None
    """(executions a step, ms a step)."""
    b: tuple[float, float] | None
    comparable: bool = True
    """False where nothing at all was recorded of one engine: that is no change to zero."""
    grouped: bool = False
    """Kernels of different names that do the same."""

    @property
    def change_ms(self) -> float | None:
        if not self.comparable:
            return None
        return (self.b[1] if self.b else 0.0) - (self.a[1] if self.a else 0.0)

    @property
    def weight_ms(self) -> float:
        """What the order by change goes by."""
        change = self.change_ms
        return abs(change) if change is not None else max(x[1] for x in (self.a, self.b) if x)


def page(snapshot: Snapshot, view: View, width: int, height: int = 99) -> list[Row]:
    """Waterfall first: it says why; then every kernel. The page scrolls; of a small ``height`` the
    waterfall leaves some to the kernels."""
    trace = trace_or_why(snapshot, view, width)
    if isinstance(trace, list):
        return trace
    a, b = sides(snapshot, view)
    if b is None:
        return [row(Span("no engine in this run", "dim"))] if a is None else []
    step = shown_step(view)
    out: list[Row] = []
    if a is not None:
        out += _fall(snapshot, trace, a, b, view, step, (width, height))
    if view.compare.roles:
        return [*out, *roles.table(trace, a, b, view, width)]
    if any(t.whole for t in trace.lanes.lanes[b.index].tracks):
        step = None  # all of its kernels
    return [*out, *_table(trace, a, b, view, step, width)]


def sides(snapshot: Snapshot, view: View) -> tuple[Lane | None, Lane | None]:
    """Baseline and the engine compared with it; one engine alone has no baseline."""
    every = View(view.glyphs, focus=view.focus).lanes(snapshot)
    running = [lane for lane in every if not lane.failed] or every
    if len(running) < 2:
        return None, (running[0] if running else None)
    base = next((lane for lane in running if lane.index == view.compare.against), running[0])
    others = [lane for lane in running if lane is not base]
    return base, next((lane for lane in others if lane.index == view.focused(snapshot)), others[0])


def shown_step(view: View) -> int | None:
    """The step of the waterfall where it is of one step: the one selected on the timeline."""
    if view.compare.basis != "step":
        return None
    return view.step


def step_parts(lane: TimeLane, step: int) -> StepParts | Unavailable:
    """One traced step by category, exactly; idle is what is left."""
    track, work = lane.traced, lane.work
    if isinstance(work, Unavailable):
        return work
    if track is not None and track.whole:
        return Unavailable(f"no steps of {lane.label} are known; the table has all of its kernels")
    if track is None or step > track.steps:
        return Unavailable(f"{lane.label} has no traced step {step}")
    if step > lane.analysed_steps(track):
        return Unavailable(f"kernels of {lane.label}'s step {step} are not analysed: too many")
    bounds = track.bounds_ns[step : step + 2]
    parts = {name: int(curve.between(bounds)[0]) for name, curve in work.curves.items()}
    wall = int(bounds[1] - bounds[0])
    parts[IDLE] = wall - sum(parts.values())
    return StepParts(lane.label, 1, wall, {name: ns for name, ns in parts.items() if ns})


def chosen_fall(
    trace: RunTrace, a: int, b: int, basis: str, step: int | None
) -> Waterfall | Unavailable:
    """On the basis wanted; as traced where the timing pass has nothing to scale to."""
    if step is not None:
        one, two = (step_parts(trace.lanes.lanes[i], step) for i in (a, b))
        return waterfall(one, two)
    fall = trace.fall(trace.engines[a].label, trace.engines[b].label)
    if basis == "traced" or isinstance(fall.timing, Unavailable):
        return fall.traced
    return fall.timing


def verdict(
    snapshot: Snapshot, a: Lane, b: Lane, fall: Waterfall | Unavailable, one_step: bool = False
) -> str:
    """``b is 1.64× as fast as a (95 %: 1.52–1.72); a takes 4.06 ms more a step than b: …``.
    The whole run's ratio is left out over the numbers of one step."""
    names = {clean(a.engine.label), clean(b.engine.label)}
    pair: PairView | None = next(
        (p for p in snapshot.pairs if {clean(p.a), clean(p.b)} == names), None
    )
    head = clean(pair.verdict) if pair else f"{clean(a.engine.label)} to {clean(b.engine.label)}"
    if isinstance(fall, Unavailable):
        return head
    words = clean(verdict_words(fall))
    return words if one_step else f"{head}; {words}"


def _fall(
    snapshot: Snapshot,
    trace: RunTrace,
    a: Lane,
    b: Lane,
    view: View,
    step: int | None,
    size: tuple[int, int],
) -> list[Row]:
    glyphs = view.glyphs
    width, height = size
    fall = chosen_fall(trace, a.index, b.index, view.compare.basis, step)
    title = row(
        Span("A ", "dim"), Span(clean(a.engine.label), f"{a.accent} strong"),
        Span(" → ", "dim"),
        Span("B ", "dim"), Span(clean(b.engine.label), f"{b.accent} strong"),
    )  # fmt: skip
    basis = {"timing": "timing pass", "traced": "as traced", "step": f"traced step {step}"}
    chosen = view.compare.basis
    if chosen == "timing" and not isinstance(fall, Unavailable):
        chosen = fall.basis  # as traced where there is nothing else
    right = row(Span(f"{basis[chosen]} (b)", "dim"))
    out = [rule(title, right, width, glyphs.track)]
    out += [
        row(Span(t, "bright")) for t in wrap(verdict(snapshot, a, b, fall, step is not None), width)
    ]
    if view.compare.roles:
        return out
    if isinstance(fall, Unavailable):
        return [*out, *(row(Span(t, "dim")) for t in wrap(clean(fall.reason), width)), ()]
    out += _parts(fall, width, view, _MOST_PARTS if height < _LOW else len(fall.parts))
    note = f"{fall.provenance}: {clean(fall.note)}"
    return [*out, *(row(Span(line, "dim")) for line in wrap(note, width)), ()]


def _parts(fall: Waterfall, width: int, view: View, most: int) -> list[Row]:
    """ms a step of both, and the change as a bar to the left (less) or the right (more); the
    smallest changes of more than ``most`` as one."""
    glyphs = view.glyphs
    largest = max((abs(p.delta_ns) for p in fall.parts), default=0) or 1
    half = max(4, min(24, (width - _NAME - 2 - 48) // 2))
    head = f"{'ms a step':<{_NAME + 2}}{'A':>9}{'share':>6}{'B':>10}{'share':>6}{'change':>10}"
    out: list[Row] = [fit(row(Span(head, "dim")), width)]
    shown = fall.parts if len(fall.parts) <= most else fall.parts[: most - 1]
    lines = [
        (category_letter(p.category), category_role(p.category), clean(part_name(fall, p)),
         p.a_ns, p.b_ns)
        for p in shown
    ]  # fmt: skip
    if rest := fall.parts[len(shown) :]:
        summed = sum(p.a_ns for p in rest), sum(p.b_ns for p in rest)
        lines.append((" ", "dim", f"{len(rest)} smaller changes", *summed))
    for letter, role, name, a_ns, b_ns in lines:
        delta = b_ns - a_ns
        cells = round(half * abs(delta) / largest)
        less = delta < 0
        change = "dim" if abs(delta) < _SMALL else "good" if less else "fail"
        bar = glyphs.bars[-1] * cells
        line = row(
            Span(f"{letter} ", role),
            Span(fit_text(name, _NAME), role),
            Span(f"{a_ns / 1e6:9.3f}"), Span(f"{_share(a_ns, fall.a_ns):>6}", "dim"),
            Span(f"{b_ns / 1e6:10.3f}"), Span(f"{_share(b_ns, fall.b_ns):>6}", "dim"),
            Span(f"{delta / 1e6:+10.3f}  ", change),
            Span(bar.rjust(half) if less else " " * half, "good"),
            Span(glyphs.tick[1], "track"),
            Span("" if less else bar, "fail"),
        )  # fmt: skip
        out.append(fit(line, width))
    ends = f"{fall.a_ns / 1e6:9.3f}{'':6}{fall.b_ns / 1e6:10.3f}{'':6}{fall.delta_ns / 1e6:+10.3f}"
    total = f"  {'step':<{_NAME}}{ends}"
    return [*out, fit(row(Span(total, "strong")), width)]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole > 0 else ""


def entries(
    trace: RunTrace, a: int | None, b: int, view: CompareView, step: int | None
) -> list[Entry]:
    """Kernels of both engines (operators where neither has kernels), filtered and sorted."""
    left = {} if a is None else _kernels(trace, a, step)
    right = _kernels(trace, b, step)
    if not left and not right:
        left = {} if a is None else _operators(trace.engines[a])
        right = _operators(trace.engines[b])
    right = _by_short_name(left, right)
    paired = None if a is None or step is not None else families(trace, a, b, left, right)
    found = [] if paired is None else paired
    for key in dict.fromkeys([*left, *right]) if paired is None else ():
        one, two = left.get(key), right.get(key)
        name, category = (one or two or ("", "", 0.0, 0.0))[:2]
        comparable = a is None or bool(left and right)
        found.append(Entry(name, category, one and one[2:], two and two[2:], comparable))
    wanted = view.filter.casefold()
    found = [e for e in found if wanted in e.name.casefold() or wanted in e.category.casefold()]
    order = {
        "change": lambda e: (-e.weight_ms, e.name),
        "A": lambda e: (-(e.a[1] if e.a else -1.0), e.name),
        "B": lambda e: (-(e.b[1] if e.b else -1.0), e.name),
        "name": lambda e: (0.0, e.name.casefold()),
    }[view.sort if a is not None or view.sort == "name" else "B"]
    return sorted(found, key=order)


def _by_short_name(left: dict[str, _Line], right: dict[str, _Line]) -> dict[str, _Line]:
    """``right`` with the keys of ``left`` for kernels that are the only one of their short name and
    category on either side: instances of one template, which ``pair_kernels`` pairs too."""

    def alone(lines: dict[str, _Line]) -> dict[tuple[str, str], str]:
        count = Counter(line[:2] for line in lines.values())
        return {line[:2]: key for key, line in lines.items() if count[line[:2]] == 1}

    mine, theirs = alone(left), alone(right)
    both = [(theirs[name], mine[name]) for name in mine.keys() & theirs.keys()]
    renamed = {key: wanted for key, wanted in both if wanted not in right}
    return {renamed.get(key, key): line for key, line in right.items()}


def families(
    trace: RunTrace, a: int, b: int, left: dict[str, _Line], right: dict[str, _Line]
) -> list[Entry] | None:
    """Kernels by what their names say they do, where less than half of the time is in kernels that
    both engines have by name (other engines, other vendors); else ``None``."""
    one, two = trace.engines[a].kernels, trace.engines[b].kernels
    if not left or not right:
        return None
    if isinstance(one, Unavailable) or isinstance(two, Unavailable):
        return None
    total = sum(line[3] for side in (left, right) for line in side.values())
    both = sum(left[name][3] + right[name][3] for name in left.keys() & right.keys())
    # Where one has steps and the other none, times are in all, and this page's are not.
    if both >= _NAMED * total or bool(one.step_count) != bool(two.step_count):
        return None
    known = next(
        (f.kernels for f in trace.falls if (f.a, f.b) == (trace.engines[a].label,
                                                         trace.engines[b].label)), None
    )  # fmt: skip
    pairing = pair_kernels(one, two) if known is None else known
    if isinstance(pairing, Unavailable):
        return None
    return [
        Entry(
            _family_words(pair),
            pair.category,
            (pair.a_count, pair.a_ns / 1e6) if pair.a_names else None,
            (pair.b_count, pair.b_ns / 1e6) if pair.b_names else None,
            grouped=True,
        )
        for pair in pairing.rows
    ]


def _family_words(pair: PairedKernels) -> str:
    if pair.how != "family":
        return clean(pair.label)
    return clean(f"{pair.label}: {pair.a_names[0]} | {pair.b_names[0]}")


_Line = tuple[str, str, float, float]
"""Short name, category, executions a step, ms a step."""


def _kernels(trace: RunTrace, index: int, step: int | None) -> dict[str, _Line]:
    lane = trace.lanes.lanes[index]
    if step is not None:
        return _of_step(lane, step)
    report = trace.engines[index].kernels
    if isinstance(report, Unavailable):
        return {}
    steps = max(1, report.step_count)
    return {
        k.name: (clean(k.short_name), k.category, k.count / steps, k.total_ns / steps / 1e6)
        for k in report.kernels
    }


def _of_step(lane: TimeLane, step: int) -> dict[str, _Line]:
    track, work = lane.traced, lane.work
    if not isinstance(work, LaneWork) or track is None or step > track.steps:
        return {}
    first, last = np.searchsorted(work.start_ns, track.bounds_ns[step : step + 2], "left").tolist()
    label = work.label[first:last]
    length = (work.end_ns - work.start_ns)[first:last]
    count = np.bincount(label, minlength=len(work.names))
    total = np.bincount(label, weights=length, minlength=len(work.names))
    found: dict[str, _Line] = {}
    for i in np.flatnonzero(count).tolist():
        name = clean(work.short_name(int(first + np.argmax(label == i))))
        found[clean(work.names[i])[:1000]] = (
            name, work.categories[i], float(count[i]), float(total[i]) / 1e6,
        )  # fmt: skip
    return found


def _operators(engine: EngineTrace) -> dict[str, _Line]:
    steps = engine.record.steps if engine.record is not None else 0
    per = max(1, steps)
    return {
        o.name: (clean(o.name), "operator, self time", o.calls / per, o.total_ns / per / 1e6)
        for o in engine.operators
    }


def _table(
    trace: RunTrace, a: Lane | None, b: Lane, view: View, step: int | None, width: int
) -> list[Row]:
    compare = view.compare
    found = entries(trace, None if a is None else a.index, b.index, compare, step)
    operators = bool(found) and found[0].category.startswith("operator")
    kind = ("operator" if operators else "kernel") + "s" * (len(found) != 1)
    if found and found[0].grouped:
        kind = "groups of like kernels" if len(found) != 1 else "group of kernels"
    note = f"by purpose (u) · sorted by {compare.sort} (o) · filter (/)"
    if compare.filter:
        note = f"sorted by {compare.sort} (o) · {clean(compare.filter)!r} (/)"
    title = row(Span(f"{len(found)} {kind}", "strong"))
    out = [rule(title, row(Span(note, "dim")), width, view.glyphs.track)]
    if not found and not compare.filter:
        why = trace.engines[b.index].kernels
        text = why.reason if isinstance(why, Unavailable) else "no kernel"
        return [*out, *(row(Span(t, "dim")) for t in wrap(clean(text), width))]
    if found and not found[0].comparable and a is not None:
        lacking = a if all(e.a is None for e in found) else b
        text = f"no {kind} of {clean(lacking.engine.label)} were recorded: nothing to compare with"
        out += [row(Span(t, "dim")) for t in wrap(text, width)]
    side = 18
    # Numbers stand beside the names, however wide the terminal is.
    longest = 1 + max((width_of(row(Span(e.name))) for e in found), default=0)
    room = min(longest, 140, width - 2 - (2 * side + 10 if a is not None else side))
    room = max(12, room)
    head = f"  {'':<{room}}"
    per = [_per(trace, lane, step) for lane in (a, b)]
    if a is not None:
        head += f"{f'A {per[0]}':>10}{'ms':>8}"
    head += f"{f'B {per[1]}' if a is not None else per[1]:>10}{'ms':>8}"
    head += f"{'change':>10}" if a is not None else ""
    out.append(fit(row(Span(head, "dim")), width))
    return [*out, *(_entry(e, a is not None, room, width) for e in found)]


def _per(trace: RunTrace, lane: Lane | None, step: int | None) -> str:
    """What the numbers of an engine are over: a step, or all that was traced."""
    if lane is None or step is not None:
        return "a step"
    report = trace.engines[lane.index].kernels
    known = isinstance(report, Unavailable) or report.step_count
    return "a step" if known else "in all"


def _entry(e: Entry, both: bool, room: int, width: int) -> Row:
    letter = " " if e.category.startswith("operator") else category_letter(e.category)
    role = "" if letter == " " else category_role(e.category)
    change = e.change_ms
    tint, text = "dim", "n/a"
    if change is not None:
        text = f"{change:+.3f}"
        tint = "dim" if abs(change) * 1e6 < _SMALL else "good" if change < 0 else "fail"
    return fit(
        row(
            Span(f"{letter} ", role),
            Span(fit_text(e.name, room)),
            *(_side(e.a) if both else ()),
            *_side(e.b),
            Span(f"{text:>10}" if both else "", tint),
        ),
        width,
    )


def _side(value: tuple[float, float] | None) -> Sequence[Span]:
    if value is None:
        return (Span(f"{'–':>10}{'–':>8}", "dim"),)
    count = f"{value[0]:.0f}" if value[0] == round(value[0]) else f"{value[0]:.1f}"
    return (Span(f"{count:>10}"), Span(f"{value[1]:8.3f}"))
