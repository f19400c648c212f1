"""The page as a pure function: what is known of a sweep and a view in, rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from llmprof.sweep.curves import IDLE, METRICS, Curve, Place, chosen_axis, curves, doubts
from llmprof.sweep.fields import FIELDS
from llmprof.sweep.fits import fit_words
from llmprof.sweep.report.gaps import CATEGORIES, failed_points, why_missing
from llmprof.sweep.rows import Row as PointRow
from llmprof.tui.drawing.cells import (
    Row,
    Span,
    clean,
    fit,
    fit_label,
    fit_text,
    row,
    rule,
    spread,
    wrap,
)
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.marks import category_letter, category_role
from llmprof.tui.drawing.palette import accent
from llmprof.tui.sweep.plot import Dot, Series, plot

TABS: Final = ("curves", "categories", "map", "fits")
MARKS: Final = "ox+*#@%&"
MOST_SERIES: Final = 12
MOST_DOUBTS: Final = 3
_WITH_SHARE: Final = 13
"""Cells of a column that hold ms and a share."""


@dataclass(frozen=True)
class Known:
    """A sweep as it stands; made on a thread."""

    title: str
    axes: tuple[str, ...]
    rows: tuple[PointRow, ...]
    points: int
    done: int
    failed: int
    by_axis: dict[str, tuple[Curve, ...]]
    """Axis → its curves."""

    @staticmethod
    def of(
        title: str, axes: tuple[str, ...], rows: Sequence[PointRow], points: int, done: int,
        failed: int,
    ) -> Known:  # fmt: skip
        """With the curves over every axis; the page opens with the one that the report takes."""
        first = chosen_axis(axes, "")
        chosen = (first, *(axis for axis in axes if axis != first))
        by_axis = {axis: tuple(curves(rows, axes, axis)) for axis in chosen}
        return Known(title, chosen, tuple(rows), points, done, failed, by_axis)


@dataclass(frozen=True)
class SweepView:
    """What of it is shown."""

    tab: str = "curves"
    axis: int = 0
    metric: int = 0
    curve: int = 0
    place: int = 0

    def axis_of(self, known: Known) -> str:
        return known.axes[self.axis % len(known.axes)]

    def curves_of(self, known: Known) -> tuple[Curve, ...]:
        return known.by_axis[self.axis_of(known)]

    def chosen(self, known: Known) -> tuple[Curve, Place] | None:
        """Where the cursor is."""
        found = self.curves_of(known)
        if not found:
            return None
        curve = found[self.curve % len(found)]
        return curve, curve.places[min(self.place, len(curve.places) - 1)]

    def moved(self, known: Known, curve: int = 0, place: int = 0) -> SweepView:
        """The cursor elsewhere, within what there is."""
        found = self.curves_of(known)
        if not found:
            return self
        number = (self.curve + curve) % len(found)
        last = len(found[number].places) - 1
        return replace(self, curve=number, place=min(max(0, min(self.place, last) + place), last))


def _doubts(found: Sequence[Curve], whole: bool, width: int) -> list[Row]:
    """What makes curves doubtful, above them; many are in one line but for the page with words."""
    texts = doubts(found)
    if len(texts) > MOST_DOUBTS and not whole:
        rest = len(texts) - MOST_DOUBTS + 1
        texts = [*texts[: MOST_DOUBTS - 1], f"{rest} more such lines: page fits"]
    return [fit(row(Span(f"! {t}", "warn")), width) for d in texts for t in wrap(d, width - 2)]


def metrics_of(known: Known) -> list[str]:
    """Those that some row has."""
    found = [m for m in METRICS if any(r.get(m) is not None for r in known.rows)]
    return found or ["step_ms"]


def header(known: Known | None, view: SweepView, width: int) -> list[Row]:
    """Two rows."""
    if known is None:
        return [row(Span("llmprof", "bright"), Span("  sweep", "strong")), ()]
    left = row(Span("llmprof", "bright"), Span("  sweep  ", "strong"), Span(clean(known.title)))
    state = f"{known.done} of {known.points} points"
    right = [Span(f"{known.failed} did not run  ", "warn")] if known.failed else []
    right.append(Span(state, "good" if known.done == known.points else "dim"))
    tabs = [
        Span(f"[{name}]" if name == view.tab else f" {name} ",
             "strong" if name == view.tab else "dim")
        for name in TABS
    ]  # fmt: skip
    over = row(Span(f"over {view.axis_of(known)}", "dim"))
    return [spread(left, tuple(right), width), spread(over, tuple(tabs), width)]


def body(
    known: Known | None, view: SweepView, glyphs: Glyphs, width: int, height: int
) -> list[Row]:
    """The page on show."""
    if known is None:
        return [row(Span("reading the sweep…", "dim"))]
    found = view.curves_of(known)
    if not found:
        return [row(Span("no point has ended well yet", "dim")), *_failed(known, width)]
    lines = _doubts(found, view.tab == "fits", width)
    room = max(6, height - len(lines))
    if view.tab == "categories":
        return [*lines, *_categories(known, view, glyphs, width, room)]
    if view.tab == "map":
        return [*lines, *_map(known, view, glyphs, width)]
    if view.tab == "fits":
        words = [*fit_words(found, view.axis_of(known)), *why_missing(found, list(METRICS))]
        return [*lines, *(row(Span(t)) for w in words for t in [*wrap(clean(w), width), ""]),
                *_failed(known, width)]  # fmt: skip
    return [*lines, *_curves(known, view, glyphs, width, room)]


def _curves(known: Known, view: SweepView, glyphs: Glyphs, width: int, height: int) -> list[Row]:
    found = view.curves_of(known)
    offered = metrics_of(known)
    metric = offered[view.metric % len(offered)]
    chosen = view.chosen(known)
    assert chosen is not None
    start = max(0, min(found.index(chosen[0]) - MOST_SERIES // 2, len(found) - MOST_SERIES))
    shown = found[start : start + MOST_SERIES]
    colours = {c: i for i, c in enumerate(dict.fromkeys((x.engine, x.hardware) for x in found))}
    series, legend = [], []
    for number, curve in enumerate(shown):
        on = curve is chosen[0]
        mark = MARKS[(start + number) % len(MARKS)]
        role = accent(colours[curve.engine, curve.hardware])
        dots = []
        for place in curve.places:
            value = place.value(metric)
            if value is not None:
                low, high = place.interval(metric) or (None, None)
                dots.append(Dot(place.x, value, low, high))
        series.append(Series(mark, role, tuple(dots)))
        legend.append(_legend(curve, mark, role, on, glyphs, metric, view, width))
    ticks = list(dict.fromkeys((p.x, p.shown) for c in found for p in c.places))
    title = rule(row(Span(METRICS[metric], "strong")), row(Span("m: next", "dim")), width,
                 glyphs.track)  # fmt: skip
    more = (
        [row(Span(f"{len(shown)} of {len(found)} curves", "dim"))]
        if len(shown) < len(found)
        else []
    )
    picture = plot(series, ticks, width, max(6, height - len(legend) - len(more) - 3))
    return [title, *picture, *legend, *more, _point(chosen, width)]


def _legend(
    curve: Curve, mark: str, role: str, on: bool, glyphs: Glyphs, metric: str, view: SweepView,
    width: int,
) -> Row:  # fmt: skip
    values = []
    for number, place in enumerate(curve.places):
        value = place.value(metric)
        text = "n/a" if value is None else f"{value:.4g}"
        here = on and number == min(view.place, len(curve.places) - 1)
        values += [Span(f" {text} ", "select" if here else "dim")]
    name = fit_label(clean(curve.label), 34)
    return fit(
        row(Span(f"{glyphs.focus if on else ' '} {mark} ", role),
            Span(name, f"{role} strong" if on else ""), Span(" "), *values),
        width,
    )  # fmt: skip


def _point(chosen: tuple[Curve, Place], width: int) -> Row:
    """What is under the cursor, and what enter does."""
    curve, place = chosen
    first = place.rows[0]
    facts = [curve.hardware, str(first.get("node") or ""), f"driver {first['driver']}"
             if first.get("driver") else ""]  # fmt: skip
    run = "enter: its run" if first.get("run_file") else "no run file"
    text = " · ".join(clean(part) for part in (place.shown, *facts) if part)
    return spread(row(Span(text, "dim")), row(Span(run, "dim")), width)


def _categories(
    known: Known, view: SweepView, glyphs: Glyphs, width: int, height: int
) -> list[Row]:
    """A bar a place, its categories in their letters; all bars in one scale."""
    chosen = view.chosen(known)
    assert chosen is not None
    curve = chosen[0]
    parts = [place.categories() for place in curve.places]
    title = rule(row(Span(clean(curve.label), "strong")), row(Span("ms a step, as traced", "dim")),
                 width, glyphs.track)  # fmt: skip
    if not any(parts):
        why = curve.places[0].rows[0].get("reasons", {}).get("categories", "no kernels were traced")
        return [title, *(row(Span(t, "dim")) for t in wrap(f"n/a: {clean(why)}", width)),
                row(Span("up and down: another curve", "dim"))]  # fmt: skip
    names = sorted({n for p in parts for n in p if n != IDLE},
                   key=lambda n: -max(p.get(n, 0.0) for p in parts))  # fmt: skip
    names += [IDLE] if any(IDLE in p for p in parts) else []
    longest = max(sum(p.values()) for p in parts)
    room = max(10, width - 22)
    out = [title]
    for number, (place, found) in enumerate(zip(curve.places, parts, strict=True)):
        here = number == min(view.place, len(curve.places) - 1)
        total = sum(found.values())
        name = f"{glyphs.focus if here else ' '} {fit_text(place.shown, 8)}"
        spans = [Span(name, "strong" if here else "")]
        spans.append(Span(f"{total:8.3f}  " if found else "     n/a  "))
        used, done = 0, 0.0
        for name in names:
            done += found.get(name, 0.0)
            end = round(done / longest * room)
            letter = category_letter(name) if name != IDLE else glyphs.track
            if end > used:
                spans.append(Span(letter * (end - used), category_role(name)))
                used = end
        out.append(fit(row(*spans), width))
    out.append(())
    wide = 18 if width < 100 else 26
    each = max(9, min(16, (width - wide - 2) // len(parts)))
    head = f"  {'category':<{wide}}" + "".join(f"{p.shown:>{each}}" for p in curve.places)
    out.append(fit(row(Span(head, "dim")), width))
    for name in names:
        cells = "".join(
            _amount(found.get(name, 0.0) if found else None, sum(found.values()), each)
            for found in parts
        )
        mark = Span(f"{category_letter(name) if name != IDLE else glyphs.track} ",
                    category_role(name))  # fmt: skip
        out.append(fit(row(mark, Span(fit_text(clean(name), wide)), Span(cells)), width))
    for text in why_missing([curve], [CATEGORIES]):
        out += [row(Span(line, "dim")) for line in wrap(clean(text), width)]
    return out


def _amount(ms: float | None, total: float, cells: int) -> str:
    """ms, and its share where there is room."""
    if ms is None:
        return "n/a".rjust(cells)
    share = f" {ms / total:5.1%}" if cells >= _WITH_SHARE else ""
    return f"{ms:.3f}{share}".rjust(cells)


def _map(known: Known, view: SweepView, glyphs: Glyphs, width: int) -> list[Row]:
    """The chosen engine over two axes: shades from its least to its most, with the numbers."""
    axis = view.axis_of(known)
    other = next((a for a in known.axes if a != axis and a in FIELDS), None)
    if other is None:
        return [row(Span("a map needs two axes; this sweep has one", "dim"))]
    chosen = view.chosen(known)
    assert chosen is not None
    engine, hardware = chosen[0].engine, chosen[0].hardware
    metrics = metrics_of(known)
    metric = metrics[view.metric % len(metrics)]
    lines = [c for c in view.curves_of(known) if (c.engine, c.hardware) == (engine, hardware)]
    columns = sorted({(p.x, p.shown) for c in lines for p in c.places})
    values = [v for c in lines for p in c.places if (v := p.value(metric)) is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    out = [
        rule(row(Span(f"{clean(engine)}: {METRICS[metric]}", "strong")),
             row(Span(f"{axis} across, {other} down", "dim")), width, glyphs.track),
        fit(row(Span(" " * 26 + "".join(f"{shown:>12}" for _, shown in columns), "dim")), width),
    ]  # fmt: skip
    levels = glyphs.bars[1:]
    for curve in lines:
        on = curve is chosen[0]
        spans = [Span(f"{glyphs.focus if on else ' '} ", "accent0"),
                 Span(fit_label(clean(curve.label.removeprefix(f"{engine} · ")), 24),
                      "strong" if on else "")]  # fmt: skip
        for x, _ in columns:
            place = next((p for p in curve.places if p.x == x), None)
            value = None if place is None else place.value(metric)
            if value is None:
                spans.append(Span("n/a".rjust(12), "dim"))
                continue
            share = (value - low) / (high - low) if high > low else 0.0
            shade = levels[min(len(levels) - 1, int(share * len(levels)))]
            here = on and place is chosen[1]
            spans += [
                Span(f" {shade * 2}", "warn"),
                Span(f"{value:>9.4g}", "select" if here else ""),
            ]
        out.append(fit(row(*spans), width))
    return [*out, (), _point(chosen, width)]


def _failed(known: Known, width: int) -> list[Row]:
    repeats = len({one.get("repeat") for one in known.rows})
    bad = failed_points(known.rows, known.axes, repeats)
    if not bad:
        return []
    out: list[Row] = [row(Span("points that did not run", "strong"))]
    for one in bad[:100]:
        out += [row(Span(line, "fail")) for line in wrap(clean(one.words), width)]
    if len(bad) > 100:
        out.append(row(Span(f"and {len(bad) - 100} more", "dim")))
    return out
