"""What the host did: each engine's flame, why the GPU waited, two engines' frames compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from llmprof.analysis.host.causes import GapCauses
from llmprof.analysis.host.stacks import (
    LEAST_SAMPLES,
    Flame,
    HostTrace,
    flame,
    frame_times,
)
from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.records import HostFrame, Unavailable
from llmprof.tui.drawing.cells import Row, Span, beside, clean, fit, fit_text, row, rule, wrap
from llmprof.tui.view import Lane, View, trace_or_why

_BAR: Final = 12
_SIDE: Final = 55
"""Each of several engines side by side has at least this: names and values stay in one piece."""
_NARROW: Final = 76
"""Below this width a flame has half a bar: names need the room."""
_SMALLEST: Final = 0.02
"""Frames below this share are left out; their time stands in their caller's."""
_DEPTH: Final = 24
_DIFF_ROWS: Final = 12

Stacks = Sequence[tuple[tuple[HostFrame, ...], float]]


def page(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """Two engines' difference first: it says why; then each engine's flame."""
    trace = trace_or_why(snapshot, view, width)
    if isinstance(trace, list):
        return trace
    lanes = view.lanes(snapshot)
    engines = {clean(e.label): e for e in trace.engines}
    out = _difference(trace, view, width)
    fits = max(1, width // _SIDE)
    if fits < len(lanes):
        # From the one in focus on, in order: tab brings the others.
        at = next((i for i, lane in enumerate(lanes) if lane.focused), 0)
        note = f"{fits} of {len(lanes)} engines · tab: the next"
        out.append(fit(row(Span(note, "dim")), width))
        lanes = [lanes[(at + i) % len(lanes)] for i in range(fits)]
    each = (width - 2 * (len(lanes) - 1)) // max(1, len(lanes))
    blocks = [
        _lane(engines[name], lane, view, each)
        for lane in lanes
        if (name := clean(lane.engine.label)) in engines
    ]
    return [*out, *beside(blocks, [each] * len(blocks), 2)] if blocks else out


def selected(engine: EngineTrace, view: View) -> tuple[Stacks, float, str] | Unavailable:
    """(stacks, ms a step that they stand for, what they are) of the range on show."""
    host = engine.host
    if isinstance(host, Unavailable):
        return host
    if view.host == "gaps":
        causes = engine.causes
        if isinstance(causes, Unavailable):
            return causes
        if not causes.stacks:
            return Unavailable("no sample fell into a gap")
        return causes.stacks, causes.ms_per_step, "idle gaps of the GPU"
    if view.host == "step":
        stacks = host.weighted(view.step)
        if not stacks:
            return Unavailable(f"no sample fell into step {view.step}")
        return stacks, host.step_ms(view.step), f"step {view.step}"
    return host.weighted(), host.report.step_ms, "all traced steps"


def _lane(engine: EngineTrace, lane: Lane, view: View, width: int) -> list[Row]:
    name = row(Span(clean(engine.label), f"{lane.accent} strong"))
    found = selected(engine, view)
    what = "" if isinstance(found, Unavailable) else found[2]
    out = [rule(name, row(Span(f"{what} (g)", "dim")), width, view.glyphs.track)]
    causes = engine.causes
    if isinstance(causes, GapCauses) and view.host != "step":
        out += _causes(causes, view, width)
    if isinstance(engine.host, HostTrace):
        text = _step_text(engine.host, view.step) if view.host == "step" else ""
        lines = wrap(clean(text or engine.host.report.verdict), width)
        out += [row(Span(line)) for line in lines]
    if isinstance(found, Unavailable):
        return [*out, *(row(Span(line, "dim")) for line in wrap(clean(found.reason), width))]
    stacks, ms, _ = found
    tree = flame(stacks)
    head = f"{'with callees':>{_bar(width) + 9}}  {len(stacks)} samples"
    few = "" if len(stacks) >= LEAST_SAMPLES else ": too few for shares"
    out.append(fit(row(Span(head, "dim"), Span(few, "warn")), width))
    return [*out, *_flame(tree, tree.weight or 1.0, ms, view, width)]


def _step_text(host: HostTrace, step: int) -> str:
    """What the host did in one step, as far as its samples say."""
    kinds = host.kinds_ms(step)
    parts = [f"{ms:.2f} ms {kind}" for kind, ms in kinds.items()]
    return f"of {host.step_ms(step):.2f} ms in step {step}: {', '.join(parts) or 'no sample'}"


def _causes(causes: GapCauses, view: View, width: int) -> list[Row]:
    out = [row(Span(line, "warn")) for line in wrap(clean(causes.verdict), width)]
    for c in causes.causes:
        bar = view.glyphs.bars[-1] * round(_BAR * c.share)
        text = f"  {c.cause:<14}{c.ms_per_step:9.3f} ms{100 * c.share:6.1f}%  {bar}"
        out.append(fit(row(Span(text)), width))
    return out


def _bar(width: int) -> int:
    return _BAR if width >= _NARROW else _BAR // 2


def _name(label: str, room: int) -> str:
    """``f (model.py:7)``, or ``f :7`` where there is no room for it."""
    function, _, place = label.rpartition(" (")
    if len(label) <= room or not function:
        return label
    return f"{function} :{place.rstrip(')').rpartition(':')[2]}"


def _flame(
    node: Flame, total: float, ms: float, view: View, width: int, depth: int = 0
) -> list[Row]:
    """A line a frame, callees indented below their caller, the heaviest first."""
    out: list[Row] = []
    children = sorted(node.children.values(), key=lambda c: (-c.weight, c.label))
    for child in children:
        share = child.weight / total
        if share < _SMALLEST or depth > _DEPTH:
            continue
        bar = view.glyphs.bars[-1] * round(_bar(width) * share)
        indent = " " * min(depth, 12)
        role = {"engine": "bright", "library": "", "native": ""}.get(child.origin, "dim")
        room = max(8, width - _bar(width) - 11 - len(indent))
        line = row(
            Span(bar.ljust(_bar(width)), "good"),
            Span(f"{ms * share:8.3f} "),
            Span(indent),
            Span(fit_text(_name(clean(child.label), room), room), role),
        )
        out.append(fit(line, width))
        out += _flame(child, total, ms, view, width, depth + 1)
    return out


def _difference(trace: RunTrace, view: View, width: int) -> list[Row]:
    """The first two engines with stacks: ms a step by kind (by cause in gaps), then self time of
    the functions that both have. What one engine alone has is not another's difference."""
    found = [
        (e, chosen)
        for e in trace.engines
        if not isinstance(chosen := selected(e, view), Unavailable)
    ][:2]
    if len(found) < 2:
        return []
    (a, (a_stacks, a_ms, _)), (b, (b_stacks, b_ms, _)) = found
    times = [
        {f.label: f.self_ms_per_step for f in frame_times(stacks, ms)}
        for stacks, ms in ((a_stacks, a_ms), (b_stacks, b_ms))
    ]
    names = f"A {clean(a.label)} → B {clean(b.label)}"
    right = row(Span("ms a step", "dim"))
    out = [rule(row(Span(names, "strong")), right, width, view.glyphs.track)]
    head = f"{'':<{_names(width)}}{'A':>9}{'B':>9}{'change':>10}"
    out.append(fit(row(Span(head, "dim")), width))
    out += _changes(_by_kind(a, view), _by_kind(b, view), width, both=False)
    same = _changes(times[0], times[1], width, both=True)
    head = "self time of functions of both" if same else "no function has self time in both engines"
    return [*out, row(Span(head, "dim")), *same, ()]


def _by_kind(engine: EngineTrace, view: View) -> dict[str, float]:
    if view.host == "gaps":
        causes = engine.causes
        return {} if isinstance(causes, Unavailable) else _of_causes(causes)
    host = engine.host
    if isinstance(host, Unavailable):
        return {}
    return host.kinds_ms(view.step if view.host == "step" else None)


def _of_causes(causes: GapCauses) -> dict[str, float]:
    return {str(c.cause): c.ms_per_step for c in causes.causes}


def _names(width: int) -> int:
    """Cells of a name; the numbers stand beside it, however wide the terminal is."""
    return max(12, min(72, width - 29))


def _changes(
    before: Mapping[str, float], after: Mapping[str, float], width: int, *, both: bool
) -> list[Row]:
    """Lines of what changed most; ``both``: only what the two have."""
    labels = before.keys() & after.keys() if both else before.keys() | after.keys()
    ranked = sorted(labels, key=lambda n: (-abs(after.get(n, 0.0) - before.get(n, 0.0)), n))
    room = _names(width)
    out = []
    for name in ranked:
        a, b = before.get(name, 0.0), after.get(name, 0.0)
        if min(a, b) <= 0 and both:
            continue
        if max(a, b) < 0.001:
            break
        line = row(
            Span(fit_text(clean(name), room)),
            Span(f"{a:9.3f}{b:9.3f}"),
            Span(f"{b - a:+10.3f}", "good" if b < a else "fail"),
        )
        out.append(fit(line, width))
    return out[:_DIFF_ROWS]
