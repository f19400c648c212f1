"""The picture of a sweep, with matplotlib: curves, categories along them, heat maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from llmprof.analysis.device.naming.categories import OTHER
from llmprof.plaintext import shortened
from llmprof.sweep.curves import IDLE, METRICS, Curve, Place, curves
from llmprof.sweep.fields import FIELDS, short
from llmprof.sweep.report.content import Content
from llmprof.sweep.rows import hardware

ENGINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which the common kinds of colour blindness tell apart."""
DASHES = ("-", "--", ":", "-.")
MARKS = "osD^vP*X"
CATEGORIES = (
    ("quantised GEMV/GEMM", "#0072B2"), ("GEMM/GEMV", "#3A93C8"), ("attention", "#CC79A7"),
    ("norm", "#F0E442"), ("RoPE", "#E0A3C2"), ("activation/elementwise", "#009E73"),
    ("KV cache", "#56B4E9"), ("embedding", "#A6D854"), ("sampling", "#E69F00"),
    ("copy", "#D55E00"), ("quantise", "#8DA0CB"), ("communication", "#FFD92F"),
    ("MoE", "#66A61E"), (OTHER, "#999999"), (IDLE, "#EEEEEE"),
)  # fmt: skip
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llmprof",
    "font.size": 9,
    # Labels are the user's: a $ in one begins no formula.
    "text.parse_math": False,
}
MOST_CURVES = 12
MOST_PANELS = 6
MOST_BARS = 40
HALVES = (1, 2, 4)
"""So many panels stand two in a row, others three."""
STACK = "stack"
"""Label of the axes that show categories."""


def picture(content: Content, to: str) -> bytes:
    """``png`` or ``svg``; letters stay text in SVG.

    Args:
        to: one of these.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    stacks = _stacked(content.curves)
    maps = _maps(content)
    rows = 1 + _rows(len(stacks)) + _rows(len(maps))
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(11, 3.6 * rows + 0.9), layout="constrained")
        # Six columns: two panels a row for curves, up to three for the others.
        grid = figure.add_gridspec(rows, 6)
        for number, metric in enumerate(("step_ms", "tok_s")):
            axes = figure.add_subplot(grid[0, number * 3 : number * 3 + 3])
            _curves(axes, content, metric)
        # Above the panels: inside one it hides a curve. The layout leaves no room for a title of
        # the figure beside it, so the title is the legend's.
        title = "\n".join(wrap(shortened(content.title, 300), 120))
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4,
            fontsize=7, title=title, title_fontsize=10, frameon=False,
        )  # fmt: skip
        at = 1
        parts = [place.categories() for curve in stacks for place in curve.places]
        highest = max((sum(p.values()) for p in parts), default=0.0)
        for number, curve in enumerate(stacks):
            axes = figure.add_subplot(grid[_cell(at, number, len(stacks))], label=STACK)
            _stack(axes, curve, content.axis, highest)
        at += _rows(len(stacks))
        for number, found in enumerate(maps):
            axes = figure.add_subplot(grid[_cell(at, number, len(maps))])
            _heat(axes, figure, *found)
        _legend_of_stacks(figure, [axes for axes in figure.axes if axes.get_label() == STACK])
        out = io.BytesIO()
        metadata = {"Date": None} if to == "svg" else {}
        figure.savefig(out, format=to, dpi=160, metadata=metadata)
    return out.getvalue()


def _rows(panels: int) -> int:
    a_row = 2 if panels in HALVES else 3
    return -(-panels // a_row)


def _cell(first: int, number: int, panels: int) -> tuple[int, slice]:
    """Row and columns of one of several panels: two or four of them share rows as halves."""
    each = 3 if panels in HALVES else 2
    at = number % (6 // each) * each
    return first + number * each // 6, slice(at, at + each)


def _curves(axes: Any, content: Content, metric: str) -> None:
    found = content.curves[:MOST_CURVES]
    engines = list(dict.fromkeys(curve.engine for curve in found))
    kinds = list(dict.fromkeys(curve.hardware for curve in found))
    held = list(dict.fromkeys(tuple(curve.held.items()) for curve in found))
    for curve in found:
        places = [p for p in curve.places if p.value(metric) is not None]
        if not places:
            continue
        label = curve.label if len(kinds) == 1 else f"{curve.label} · {curve.hardware}"
        place_of_held = held.index(tuple(curve.held.items()))
        dash = DASHES[kinds.index(curve.hardware) % 4 if len(kinds) > 1 else place_of_held % 4]
        values = [float(p.value(metric) or 0) for p in places]
        axes.plot(
            [p.x for p in places], values, dash, marker=MARKS[place_of_held % len(MARKS)],
            color=ENGINES[engines.index(curve.engine) % len(ENGINES)], label=shortened(label, 46),
            markersize=4, linewidth=1.4, markevery=max(1, len(places) // 40),
        )  # fmt: skip
        bounds = [(p.x, *b) for p in places if (b := p.interval(metric)) is not None]
        colour = ENGINES[engines.index(curve.engine) % len(ENGINES)]
        if len(bounds) > MOST_BARS:
            # A band: a line an interval is a path each, and a thousand places a minute of drawing.
            axes.fill_between(*zip(*bounds, strict=True), alpha=0.25, linewidth=0, color=colour)
        elif bounds:
            axes.vlines(*zip(*bounds, strict=True), alpha=0.5, linewidth=3, color=colour)
    axes.set_ylabel(METRICS[metric])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    _x_axis(axes, content.axis, found)
    if len(content.curves) > len(found):
        axes.set_title(f"{len(found)} of {len(content.curves)} curves", fontsize=8)


def _x_axis(axes: Any, axis: str, found: Sequence[Curve]) -> None:
    axes.set_xlabel(axis)
    ticks = sorted({(place.x, place.shown) for curve in found for place in curve.places})
    xs = [x for x, _ in ticks]
    if len(xs) > 1 and min(xs) > 0 and max(xs) >= 8 * min(xs) and axis in FIELDS:
        axes.set_xscale("log", base=2)
    step = max(1, len(ticks) // 12)
    axes.set_xticks([x for x, _ in ticks[::step]], [shortened(t, 16) for _, t in ticks[::step]])
    axes.minorticks_off()


def _stacked(found: Sequence[Curve]) -> list[Curve]:
    """Curves whose categories are known: the first and the last of each engine."""
    by_engine: dict[tuple[str, str], list[Curve]] = {}
    for curve in found:
        if any(place.categories() for place in curve.places):
            by_engine.setdefault((curve.engine, curve.hardware), []).append(curve)
    chosen: list[Curve] = []
    for group in by_engine.values():
        chosen += group[:1] if len(group) == 1 else [group[0], group[-1]]
    return chosen[:MOST_PANELS]


def _legend_of_stacks(figure: Any, stacks: Sequence[Any]) -> None:
    """One below all: in a narrow panel it would hide the axis."""
    found: dict[str, Any] = {}
    for axes in stacks:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        known = [shortened(name, 26) for name, _ in CATEGORIES]
        found = dict(sorted(found.items(), key=lambda item: _index(known, item[0])))
        place = {"loc": "outside lower center", "ncols": 6, "fontsize": 7}
        figure.legend(list(found.values()), list(found), title="categories", **place)


def _index(known: Sequence[str], name: str) -> int:
    return known.index(name) if name in known else known.index(OTHER)


def _stack(axes: Any, curve: Curve, axis: str, highest: float) -> None:
    """Bars at equal distances, since a bar's width means nothing; all stacks in one scale."""
    places = [place for place in curve.places if place.categories()]
    parts = [place.categories() for place in places]
    colours = dict(CATEGORIES)
    known = [name for name, _ in CATEGORIES]
    names = sorted(
        {name for part in parts for name in part},
        key=lambda n: _index(known, n),
    )
    heights = [[part.get(name, 0.0) for part in parts] for name in names]
    shades = [colours.get(name, colours[OTHER]) for name in names]
    labels = [shortened(name, 26) for name in names]
    if len(parts) > MOST_BARS:
        # An area a category, since matplotlib takes a millisecond for each bar.
        axes.stackplot(range(len(parts)), heights, colors=shades, labels=labels)
    else:
        _bars(axes, names, heights, shades, labels)
    step = max(1, len(places) // 10)
    axes.set_xticks(range(0, len(places), step), [shortened(p.shown, 16) for p in places[::step]])
    axes.set_xlabel(axis)
    axes.set_ylabel("ms a step, as traced")
    axes.set_title(shortened(curve.label, 44), fontsize=8)
    axes.set_ylim(0, highest * 1.05)


def _bars(
    axes: Any,
    names: Sequence[str],
    heights: Sequence[Sequence[float]],
    shades: Sequence[str],
    labels: Sequence[str],
) -> None:
    totals = [sum(column) for column in zip(*heights, strict=True)]
    below = [0.0] * len(totals)
    for name, row, shade, label in zip(names, heights, shades, labels, strict=True):
        axes.bar(
            range(len(row)), row, 0.75, bottom=below, label=label, color=shade,
            edgecolor="#444444", linewidth=0.3, hatch="///" if name == IDLE else None,
        )  # fmt: skip
        for at, (height, total) in enumerate(zip(row, totals, strict=True)):
            if height >= 0.07 * total:
                axes.text(at, below[at] + height / 2, f"{height / total:.0%}", ha="center",
                          va="center", fontsize=6)  # fmt: skip
        below = [b + h for b, h in zip(below, row, strict=True)]


def _maps(content: Content) -> list[tuple[str, str, str, list[Curve]]]:
    """(title, x axis, y axis, its curves) of each engine, where two axes vary."""
    others = [a for a in content.axes if a != content.axis and a in FIELDS]
    other = next((a for a in ("batch", "context") if a in others), others[0] if others else None)
    if other is None:
        return []
    found = []
    for engine in dict.fromkeys(c.engine for c in content.curves):
        rows = [r for r in content.rows if r.get("engine") == engine and r.get("state") == "done"]
        for kind in dict.fromkeys(hardware(row) for row in rows):
            of_kind = [row for row in rows if hardware(row) == kind]
            lines = curves(of_kind, (content.axis, other), content.axis)
            title = (
                engine if len({c.hardware for c in content.curves}) == 1 else f"{engine} · {kind}"
            )
            found.append((title, content.axis, other, lines))
    return found[:MOST_PANELS]


def _heat(axes: Any, figure: Any, title: str, axis: str, other: str, lines: list[Curve]) -> None:
    """Step time over both axes; what did not run stays white and says n/a."""
    xs: dict[float, Place] = {p.x: p for line in lines for p in line.places}
    columns = sorted(xs)
    lines = sorted(lines, key=lambda line: _key(line.held.get(other, "")))
    by_x = [{p.x: p.value("step_ms") for p in line.places} for line in lines]
    cells = [[steps.get(x) for x in columns] for steps in by_x]
    values = [[float("nan") if v is None else v for v in row] for row in cells]
    image = axes.imshow(values, aspect="auto", cmap="viridis", origin="lower")
    flat = [v for row in cells for v in row if v is not None]
    if len(flat) <= 64:
        middle = (min(flat) + max(flat)) / 2 if flat else 0
        for y, row in enumerate(cells):
            for x, v in enumerate(row):
                text, shade = ("n/a", "#777777") if v is None else (
                    f"{v:.3g}", "white" if v < middle else "black")  # fmt: skip
                axes.text(x, y, text, ha="center", va="center", fontsize=6, color=shade)
    step = max(1, len(columns) // 10)
    axes.set_xticks(range(0, len(columns), step), [xs[x].shown for x in columns[::step]])
    up = max(1, len(lines) // 10)
    axes.set_yticks(
        range(0, len(lines), up), [short(other, line.held.get(other, "")) for line in lines[::up]]
    )
    axes.set_xlabel(axis)
    axes.set_ylabel(other)
    axes.set_title(f"{shortened(title, 40)}: step, ms", fontsize=8)
    figure.colorbar(image, ax=axes)


def _key(value: str) -> tuple[int, str]:
    return (int(value), "") if value.isdecimal() else (0, value)
