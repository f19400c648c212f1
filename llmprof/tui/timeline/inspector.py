"""What is known of the selection: a kernel, a gap or a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from llmprof.analysis.bandwidth.reconstruct import Profiles
from llmprof.analysis.host.causes import READ_NS, WORDS, GapJudge
from llmprof.analysis.host.frames import label
from llmprof.analysis.timeline.axis import Track
from llmprof.analysis.timeline.lod import AT_END, Gap, LaneWork
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.records import HostFrame, Unavailable
from llmprof.runfile.trace.rows import Ints
from llmprof.tui.drawing.cells import (
    Row,
    Span,
    beside,
    clean,
    fit,
    fit_text,
    row,
    rule,
    spread,
    width_of,
    wrap,
    wrap_facts,
)
from llmprof.tui.drawing.marks import category_letter, category_role
from llmprof.tui.drawing.numbers import duration, nth, plain
from llmprof.tui.memory.page import profile
from llmprof.tui.timeline.nav import Scene, step_gaps
from llmprof.tui.timeline.rows import api_name, series_of
from llmprof.tui.view import Lane, View

_HISTOGRAM: Final = 24
_ROOMY: Final = 100
_GAPS: Final = 3
_NEAR_NS: Final = 500_000
"""A stack further away says nothing about a gap: the host does much else in that time."""
_PARTS: Final = 7
"""Categories of a step that a narrow terminal shows, small ones as one."""
_HINT: Final = (
    "n slowest step", "m median", "g go to", "w widest gap", "[ ] item", "/ search", "+ - zoom",
    "a align", "r round",
)  # fmt: skip
_HINT_WHOLE: Final = (
    "n all of it", "w widest gap", "[ ] item", "/ search", "+ - zoom", "p choose ranges as steps",
)  # fmt: skip


def inspector(now: Scene, view: View, lane: Lane, width: int) -> list[Row]:
    """A heading and what is known; keys that select where nothing is selected."""
    chosen = view.timeline.selected
    glyphs = view.glyphs
    track = None if chosen is None else now.lane.track(chosen.key)
    if chosen is None or track is None or chosen.step > track.steps:
        head = rule(row(Span("nothing selected", "strong")), (), width, glyphs.track)
        hint = _HINT_WHOLE if now.unknown else _HINT
        return [head, *(row(Span(line, "dim")) for line in wrap_facts(hint, width))]
    work = now.work_of(track)
    if work is not None and chosen.step > now.lane.analysed_steps(track):
        work = None
    where = "prefill" if chosen.step == 0 else f"step {chosen.step} of {track.steps}"
    where = "whole trace" if track.whole else where
    right = row(Span(f"{clean(lane.engine.label)} · {where}", lane.accent))
    if chosen.gap is not None and work is not None:
        title, body = "gap", _gap(now, track, work, chosen.gap, view, width)
    elif chosen.item is not None and work is not None and chosen.item < len(work):
        trace = view.trace
        engine = trace.engines[now.index] if isinstance(trace, RunTrace) else None
        kind = "copy" if work.kernel_row[chosen.item] < 0 else "kernel"
        title, body = kind, _item(now, track, work, chosen.item, engine, view, width)
    else:
        title = _noun(track)
        body = _step(now, track, work, chosen.step, view, width)
    return [rule(row(Span(title, "strong")), right, width, glyphs.track), *body]


def _noun(track: Track) -> str:
    return "trace" if track.whole else "step"


def _wall(track: Track, step: int) -> int:
    return max(1, int(track.wall_ns[step]))


def _item(
    now: Scene,
    track: Track,
    work: LaneWork,
    item: int,
    engine: EngineTrace | None,
    view: View,
    width: int,
) -> list[Row]:
    start, end = int(work.start_ns[item]), int(work.end_ns[item])
    length = end - start
    step = track.step_at(start)
    category = work.category(item)
    spread_of = work.spread(int(work.label[item]))
    count = len(spread_of.sorted_ns)
    head = row(
        Span(f"{category_letter(category)} ", category_role(category)),
        Span(clean(work.short_name(item)), f"{category_role(category)} strong"),
        Span(f"  {clean(category)}", "dim"),
    )
    counts, low, high = spread_of.histogram(_HISTOGRAM)
    lead = row(Span(f"{duration(length):>8}", "bright"), Span("  of its own ", "dim"))
    tail = row(
        Span(
            f"p50 {duration(spread_of.quantile(0.5))} · p95 {duration(spread_of.quantile(0.95))}"
            f" · max {duration(spread_of.quantile(1.0))} · {count}×",
            "dim",
        )
    )
    bars = _histogram(counts.tolist(), low, high, length, view)
    facts = [
        f"{100 * length / _wall(track, step):.2f} % of the {_noun(track)}",
        f"at {duration(start - int(track.bounds_ns[step]))}",
        f"slower than {100 * max(0.0, spread_of.rank(length - 1)):.0f} % of them",
        f"{f'GPU {work.device} ' if now.lane.others else ''}stream {int(work.stream[item])}",
    ]
    if engine is not None and (i := int(work.kernel_row[item])) >= 0:
        k = engine.kernel_rows
        node = int(k.graph_node[i])
        facts += [
            f"graph node {node & 0xFFFFFFFF}" if node else "own launch",
            f"grid {k.grid_x[i]}×{k.grid_y[i]}×{k.grid_z[i]}",
            f"block {k.block_x[i]}×{k.block_y[i]}×{k.block_z[i]}",
            f"{k.registers[i]} registers",
            f"shared {k.static_shared[i]} + {k.dynamic_shared[i]} B",
        ]
        facts += _launch(now, int(k.correlation[i]), start)
    facts += _measured(now, start)
    facts += _dram(engine, work, item, view)
    out = [fit(head, width), fit((*lead, *bars, Span("  "), *tail), width)]
    if width_of((*lead, *bars, *tail)) + 2 > width:
        out = [fit(head, width), fit((*lead, *bars), width), fit(tail, width)]
    out += [row(Span(line)) for line in wrap_facts(facts, width)]
    return [*out, _around(work, item, width)]


def _launch(now: Scene, correlation: int, start_ns: int) -> list[str]:
    """The call that launched a kernel, where calls were traced."""
    api = now.lane.api
    at = np.flatnonzero(api.correlation == correlation)
    if not len(at):
        return []
    i = int(at[0])
    ahead = start_ns - int(api.start_ns[i])
    return [f"{api_name(now.lane, i)} {duration(ahead)} earlier"]


def _means(now: Scene, edges_ns: Ints) -> list[str]:
    """What is known of a stretch of time."""
    found = [(s, float(s.means(edges_ns)[0])) for s in series_of(now, now.index)]
    return [f"{s.name} {plain(mean)} {s.unit}" for s, mean in found if mean == mean]


def _measured(now: Scene, time_ns: int) -> list[str]:
    """What is known of a moment."""
    found = []
    for series in series_of(now, now.index):
        value = series.at(time_ns)
        if value is not None:
            found.append(f"{series.name} {plain(value)} {series.unit}")
    return found


def _dram(engine: EngineTrace | None, work: LaneWork, item: int, view: View) -> list[str]:
    """Measured bandwidth of kernels of this name and shape, and the curve along them."""
    i = int(work.kernel_row[item])
    if engine is None or isinstance(engine.dram, Unavailable) or i < 0:
        return []
    found = Profiles(engine.dram).of(engine.kernel_rows, i)
    if found is None:
        return []
    if isinstance(found.dram_gb_s, Unavailable):
        return [f"DRAM n/a: {clean(found.note)}"]
    facts = [f"DRAM {found.dram_gb_s:.0f} GB/s"]
    if not (isinstance(found.low_gb_s, Unavailable) or isinstance(found.high_gb_s, Unavailable)):
        facts[0] += f" ({found.low_gb_s:.0f}–{found.high_gb_s:.0f})"
    if not isinstance(found.of_ceiling, Unavailable):
        facts.append(f"{found.of_ceiling:.0%} of a copy")
    if not isinstance(found.mb_per_launch, Unavailable):
        facts.append(f"{found.mb_per_launch:.2f} MB a launch")
    if curve := profile(found, engine.dram.spec_gb_s, _HISTOGRAM, view.glyphs):
        facts.append(f"along it {curve}")
    return facts


def _around(work: LaneWork, item: int, width: int) -> Row:
    """What ran before it and what after it."""
    before = clean(work.short_name(item - 1)) if item > 0 else "nothing"
    after = clean(work.short_name(item + 1)) if item + 1 < len(work) else "nothing"
    half = max(10, (width - 18) // 2)
    return row(
        Span("previous ", "dim"), Span(fit_text(before, min(half, len(before)))),
        Span("    next ", "dim"), Span(fit_text(after, min(half, len(after)))),
    )  # fmt: skip


def _histogram(counts: list[int], low: int, high: int, length: int, view: View) -> Row:
    """Durations of all executions; this one's cell is reversed."""
    bars = view.glyphs.bars
    most = max(counts) or 1
    mine = min(len(counts) - 1, max(0, (length - low) * len(counts) // max(1, high - low)))
    return tuple(
        Span(
            bars[min(len(bars) - 1, max(1, round(n / most * (len(bars) - 1))))] if n else " ",
            "select" if x == mine else "dim",
        )
        for x, n in enumerate(counts)
    )


def _gap(now: Scene, track: Track, work: LaneWork, gap: Gap, view: View, width: int) -> list[Row]:
    length = gap.end_ns - gap.start_ns
    gaps = step_gaps(work, track, gap.step)
    rank = sum(g.end_ns - g.start_ns > length for g in gaps) + 1
    idle = sum(g.end_ns - g.start_ns for g in gaps)
    wall = _wall(track, gap.step)
    head = row(
        Span(f"{duration(length)} idle", "warn strong"),
        Span(f"  {100 * length / wall:.2f} % of {_noun(track)} · ", "dim"),
        Span(f"{100 * length / max(1, idle):.0f} % of its idle · ", "dim"),
        Span(f"rank {rank} of {len(gaps)} · ", "dim"),
        Span(f"at {duration(gap.start_ns - int(track.bounds_ns[gap.step]))}", "dim"),
    )
    noun = _noun(track)
    after = f"the {noun}'s begin" if gap.after == AT_END else clean(work.short_name(gap.after))
    before = f"the {noun}'s end" if gap.before == AT_END else clean(work.short_name(gap.before))
    names = row(Span("between ", "dim"), Span(after), Span("  and  ", "dim"), Span(before))
    engine = view.trace.engines[now.index] if isinstance(view.trace, RunTrace) else None
    known = (*_cause(now, engine, gap, width), _stacks(engine, gap, 2 * width))
    cause = [row(Span(line)) for text in known if text for line in wrap(text, width)]
    return [fit(head, width), fit(names, width), *cause]


def _cause(now: Scene, engine: EngineTrace | None, gap: Gap, width: int) -> list[str]:
    """The gap's time by cause, and the calls in it; where nothing is known, what it means."""
    calls = _calls(now, gap)
    judge = None if engine is None else engine.judge
    parts = judge.of(gap.start_ns, gap.end_ns) if isinstance(judge, GapJudge) else {}
    if not isinstance(judge, GapJudge) or not parts or next(iter(parts)) == "unknown":
        return [calls or _place(now, gap)]
    length = gap.end_ns - gap.start_ns
    first = next(iter(parts))
    if first == "device" or judge.has_calls:
        amounts = ", ".join(f"{cause} {duration(ns)}" for cause, ns in parts.items())
        said = f"cause: {amounts}"
    else:
        shares = ((cause, 100 * ns / length) for cause, ns in parts.items())
        samples = max(1, round(judge.samples_like(gap.start_ns)))
        said = f"likely cause ({samples} sample{'s' * (samples > 1)} in similar gaps): "
        said += ", ".join(f"{cause} {share:.0f} %" for cause, share in shares if share >= 1)
    longer = f"{said} ({WORDS[first]})"
    return [longer if len(longer) <= width else said, *filter(None, (calls,))]


def _calls(now: Scene, gap: Gap) -> str:
    """What the host did meanwhile where its calls were traced."""
    api = now.lane.api
    last = int(np.searchsorted(api.start_ns, gap.end_ns, "left"))
    first = max(0, last - 4096)
    inside = np.minimum(api.end_ns[first:last], gap.end_ns) - np.maximum(
        api.start_ns[first:last], gap.start_ns
    )
    if len(inside) and int(inside.max()) > 0:
        spent: dict[str, int] = {}
        for i in np.flatnonzero(inside > 0).tolist():
            name = api_name(now.lane, first + i)
            spent[name] = spent.get(name, 0) + int(inside[i])
        top = sorted(spent.items(), key=lambda pair: -pair[1])[:3]
        calls = ", ".join(f"{name} {duration(ns)}" for name, ns in top)
        left = gap.end_ns - gap.start_ns - sum(spent.values())
        own = f", {duration(left)} in no CUDA call" if left > 0 else ""
        return f"host meanwhile: {calls}{own}"
    return ""


def _place(now: Scene, gap: Gap) -> str:
    """What a gap there means."""
    if gap.after == AT_END and gap.before == AT_END:
        return "the device did nothing in this step"
    if gap.after == AT_END:
        return "from the step's begin to its first work: the host had not launched it yet"
    if gap.before == AT_END:
        return "from the last work to the step's end: the token goes to the host and wakes it"
    hint = "" if len(now.lane.api) else " (record with --trace full to see its calls)"
    return f"the next launch came late, or waited for the host{hint}"


def _stacks(engine: EngineTrace | None, gap: Gap, room: int) -> str:
    """Where the host was: the most frequent stack sampled in the gap, else the nearest one.

    Innermost function first, as many as fit into ``room`` characters.
    """
    if engine is None or isinstance(engine.host, Unavailable):
        return ""
    width = min(READ_NS, engine.host.sampled.tick_ns)
    there = [s for s in engine.host.samples if s.stack and s.step == gap.step]
    # A sample behind the gap may have been taken in it: its time is known to a tick.
    inside = [s for s in there if gap.start_ns < s.time_ns < gap.end_ns + width]
    if inside:
        count = Counter((s.stack, s.kind) for s in inside)
        (stack, kind), n = count.most_common(1)[0]
        return _chain(f"host stack sampled there, {n} of {len(inside)} ({kind}): ", stack, room)
    if not there:
        return ""
    middle = (gap.start_ns + gap.end_ns) // 2
    near = min(there, key=lambda s: abs(s.time_ns - middle))
    way = "earlier" if near.time_ns <= gap.start_ns else "later"
    apart = gap.start_ns - near.time_ns if way == "earlier" else near.time_ns - gap.end_ns
    if apart > _NEAR_NS:
        return f"no host stack within {duration(_NEAR_NS)} (the nearest: {duration(apart)} {way})"
    return _chain(f"nearest host stack, {duration(apart)} {way} ({near.kind}): ", near.stack, room)


def _chain(text: str, stack: Sequence[HostFrame], room: int) -> str:
    """``text`` and the innermost function, each with its caller behind it."""
    text += clean(label(stack[0]))
    for frame in stack[1:]:
        longer = f"{text} ← {clean(label(frame))}"
        if len(longer) > room - 2:
            return f"{text} …"
        text = longer
    return text


def _step(
    now: Scene, track: Track, work: LaneWork | None, step: int, view: View, width: int
) -> list[Row]:
    wall = _wall(track, step)
    head = [Span(duration(wall), "bright")]
    if step and not track.whole:
        head.append(Span(f"  {wall / max(1.0, track.median_ns):.2f}× median", "dim"))
        noun = " steps" if width >= _ROOMY else ""
        if (place := track.rank(step)) is not None:
            head.append(Span(f" · {nth(place[0])}slowest of {place[1]} traced{noun}", "dim"))
        if step <= len(track.kinds):
            head.append(Span(f" · {track.kinds[step - 1]}", "dim"))
        if step <= len(track.loads) and (load := track.loads[step - 1]):
            head.append(Span(f" · {load}", "dim"))
    facts = _means(now, track.bounds_ns[step : step + 2])
    known = " · ".join(facts)
    if work is None:
        fits = width_of(tuple(head)) + len(known) + 2 <= width
        apart = [tuple(head), *(row(Span(line, "dim")) for line in wrap_facts(facts, width))]
        lines = [spread(tuple(head), row(Span(known, "dim")), width)] if fits else apart
        if now.work_of(track) is not None:
            upto = now.lane.analysed_steps(track)
            why = (
                f"kernels of the first {upto} steps are analysed; later ones are added up in cells"
            )
            lines.append(row(Span(why, "dim")))
        return lines
    bounds = track.bounds_ns
    middle = track.median_step(now.lane.analysed_steps(track)) if step else step
    mine = {n: int(c.between(bounds[step : step + 2])[0]) for n, c in work.curves.items()}
    other = {n: int(c.between(bounds[middle : middle + 2])[0]) for n, c in work.curves.items()}
    known_names = {*mine, "idle"}
    mine["idle"] = wall - sum(mine.values())
    other["idle"] = _wall(track, middle) - sum(other.values())
    parts = [n for n in sorted(mine, key=lambda n: -mine[n]) if mine[n] or other[n]]
    columns = max(1, min(3, width // 48))
    if columns == 1 and len(parts) > _PARTS:
        small = parts[_PARTS - 1 :]
        parts = [*parts[: _PARTS - 1], f"{len(small)} smaller ones"]
        mine[parts[-1]], other[parts[-1]] = (
            sum(mine[n] for n in small),
            sum(other[n] for n in small),
        )
    cells = []
    for name in parts:
        delta = mine[name] - other[name]
        letter = category_letter(name) if name in known_names else " "
        role = category_role(name) if name in known_names else "dim"
        cells.append(
            row(
                Span(f"{letter} {fit_text(clean(name), 20)}", role),
                Span(f"{mine[name] / 1e6:8.3f}"),
                Span(f"{100 * mine[name] / wall:5.0f} %", "dim"),
                Span(
                    "" if track.whole else f"{round(delta / 1e6, 3) + 0.0:+9.3f}",
                    "dim" if abs(delta) < wall / 200 else "fail" if delta > 0 else "good",
                ),
            )
        )
    each = width // columns
    tall = -(-len(cells) // columns)
    blocks = [cells[i * tall : (i + 1) * tall] for i in range(columns)]
    alone = track.whole or not step
    note = "ms, share" if alone else f"ms, share, against median step {middle}"
    gaps = sorted(step_gaps(work, track, step), key=lambda g: g.start_ns - g.end_ns)[:_GAPS]
    wide = " · ".join(duration(g.end_ns - g.start_ns) for g in gaps)
    return [
        spread(tuple(head), row(Span(known, "dim")), width),
        *beside(blocks, [each] * columns),
        spread(
            row(Span("widest gaps (w)  ", "dim"), Span(wide, "warn")), row(Span(note, "dim")), width
        ),
    ]
