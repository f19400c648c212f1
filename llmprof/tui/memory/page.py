"""A roofline by kernel: DRAM bandwidth that each reached against its share of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmprof.analysis.bandwidth.kernels import KernelBandwidth, KernelDram, saved_ns
from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.analysis.view.traced import EngineTrace
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import Row, Span, beside, clean, fit, fit_text, row, rule, wrap
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.marks import category_letter, category_role
from llmprof.tui.view import Lane, MemoryOrder, View, trace_or_why

_BAR: Final = 10
_CURVE: Final = 16
_LEAST: Final = 0.002
"""Kernels below this share of the step are one line at the end."""
_SIDE: Final = 74
"""Each of two engines side by side has at least this."""


def page(snapshot: Snapshot, view: View, width: int, height: int) -> list[Row]:
    trace = trace_or_why(snapshot, view, width)
    if isinstance(trace, list):
        return trace
    engines = {clean(e.label): e for e in trace.engines}
    lanes = [lane for lane in view.lanes(snapshot) if clean(lane.engine.label) in engines]
    if len(lanes) > 1 and (width - 2) // len(lanes) < _SIDE:
        lanes = [lane for lane in lanes if lane.focused] or lanes[:1]
    if not lanes:
        return []
    each = (width - 2 * (len(lanes) - 1)) // len(lanes)
    blocks = [_lane(engines[clean(lane.engine.label)], lane, view, each, height) for lane in lanes]
    return beside(blocks, [each] * len(blocks), 2)


def _lane(engine: EngineTrace, lane: Lane, view: View, width: int, height: int) -> list[Row]:
    found = engine.dram
    name = row(Span(clean(engine.label), f"{lane.accent} strong"))
    order = f" · by {view.memory} (o)" if not isinstance(found, Unavailable) else ""
    what = row(Span(f"DRAM by kernel, measured{order}", "dim"))
    out = [rule(name, what, width, view.glyphs.track)]
    if isinstance(found, Unavailable):
        return [*out, *(row(Span(line, "dim")) for line in wrap(clean(found.reason), width))]
    for text, role in _facts(found):
        out += [row(Span(line, role)) for line in wrap(text, width)]
    cells = _columns(width)
    out.append(fit(row(Span(_head(cells, width), "dim")), width))
    shown = ordered([k for k in found.kernels if k.share >= _LEAST], found, view.memory)
    shown = shown[: max(1, height - len(out) - 1)]
    out += [_kernel(k, found, cells, view.glyphs, width) for k in shown]
    rest = [k for k in found.kernels if k not in shown]
    if rest:
        share = sum(k.share for k in rest)
        out.append(row(Span(f"  {len(rest)} more, {share:.1%} of the step", "dim")))
    for line in _notes(shown, width):
        if len(out) < height:
            out.append(row(Span(line, "dim")))
    return out


def _notes(kernels: Sequence[KernelDram], width: int) -> list[str]:
    """Why some have no bytes of their own."""
    lines: list[str] = []
    for kernel in kernels:
        if kernel.note and isinstance(kernel.mb_per_launch, Unavailable):
            lines += wrap(f"{_named(kernel)}: {clean(kernel.note)}", width)
    return lines


def _named(kernel: KernelDram) -> str:
    text = clean(kernel.short_name)
    if kernel.after:
        text += f" after {clean(kernel.after)}"
    if kernel.others:
        text += f" + {', '.join(map(clean, kernel.others))}"
    return text


def _facts(found: KernelBandwidth) -> list[tuple[str, str]]:
    """(text, role)."""
    room = found.headroom
    lines = [] if isinstance(room, Unavailable) else [(room.words, "strong")]
    ceiling = found.ceiling_gb_s
    copy = "n/a" if isinstance(ceiling, Unavailable) else f"{ceiling:.0f}"
    lines.append(
        (
            f"a copy reaches {copy} GB/s, the specification says {found.spec_gb_s:.0f}; sampled"
            f" {found.mean_gb_s:.1f} GB/s, kernels and idle time add up to {found.fitted_gb_s:.1f}",
            "",
        )
    )
    parts = "one value a kernel"
    if found.part_ns is not None:
        parts = f"parts of {found.part_ns / 1e3:g} µs"
    lines.append(
        (
            f"{found.samples} samples of {found.interval_ns / 1e3:.0f} µs in {found.steps} steps,"
            f" {parts}, R² {found.r2:.4f}, clock {found.offset_ns / 1e3:+.1f} µs",
            "dim",
        )
    )
    return lines


def _columns(width: int) -> tuple[str, ...]:
    """Which columns there is room for beside share, bar and name."""
    wanted = (("GB/s", 60), ("±", 108), ("MB", 90), ("µs", 100), ("win", 76))
    return tuple(name for name, least in wanted if width >= least)


def ordered(
    kernels: Sequence[KernelDram], found: KernelBandwidth, order: MemoryOrder
) -> list[KernelDram]:
    """By share of the step; or products with weights first, those that are farthest from the
    ceiling, or that would save the most of a step."""

    def key(kernel: KernelDram) -> tuple[float, float]:
        saved, of = saved_ns(kernel, found.step_ns), kernel.of_ceiling
        if order == "share" or saved is None or isinstance(of, Unavailable):
            return (1.0, -kernel.share)
        return (0.0, of if order == "distance" else -saved)

    return sorted(kernels, key=key)


_WIDTHS: Final = {"GB/s": 6, "±": 5, "MB": 9, "µs": 8, "win": 8}


def _head(cells: Sequence[str], width: int) -> str:
    texts = {"GB/s": "GB/s", "±": "±", "MB": "MB", "µs": "µs", "win": "µs/step"}
    columns = "".join(texts[name].rjust(_WIDTHS[name]) for name in cells)
    curve = f"  {'along it':<{_CURVE}}" if width >= 66 else ""
    return f"{'share':>6}  {'of a copy':<{_BAR + 5}}{columns}{curve}  kernel"


def _kernel(
    kernel: KernelDram, found: KernelBandwidth, cells: Sequence[str], glyphs: Glyphs, width: int
) -> Row:
    of = kernel.of_ceiling
    if isinstance(of, Unavailable):
        bar, percent = " " * _BAR, " n/a"
    else:
        bar, percent = _bar(of, glyphs), f"{of:4.0%}"
    texts = {
        "GB/s": _number(kernel.dram_gb_s, "{:.0f}"),
        "±": "n/a" if (half := _half(kernel)) is None else f"{half:.0f}",
        "MB": _number(kernel.mb_per_launch, "{:.2f}"),
        "µs": f"{kernel.median_ns / 1e3:.1f}",
        "win": _win(kernel, found),
    }
    columns = "".join(texts[name].rjust(_WIDTHS[name]) for name in cells)
    spans = [
        Span(f"{kernel.share:6.1%}  ", "bright"),
        Span(bar, _role(of)),
        Span(f"{percent} ", _role(of)),
        Span(columns),
    ]
    if width >= 66:
        curve = profile(kernel, found.spec_gb_s, _CURVE, glyphs)
        spans += [Span("  "), Span(curve.ljust(_CURVE), "dim")]
    used = sum(len(span.text) for span in spans)
    spans += [
        Span(f"  {category_letter(kernel.category)} ", category_role(kernel.category)),
        Span(fit_text(_named(kernel), max(8, width - used - 4))),
    ]
    return fit(row(*spans), width)


def profile(kernel: KernelDram, top_gb_s: float, cells: int, glyphs: Glyphs) -> str:
    """The throughput along a kernel as bars; empty where its parts are not told apart."""
    values = kernel.profile_gb_s
    if len(values) < 2:
        return ""
    top = len(glyphs.bars) - 1
    chars = []
    for cell in range(min(cells, len(values) * 2)):
        at = cell * len(values) // min(cells, len(values) * 2)
        level = round(top * min(1.0, values[at] / top_gb_s))
        chars.append(glyphs.bars[max(level, 1) if values[at] > 0.02 * top_gb_s else 0])
    return "".join(chars)


def _bar(share: float, glyphs: Glyphs) -> str:
    """0 to 100 % of the ceiling."""
    top = len(glyphs.bars) - 1
    full = min(1.0, share) * _BAR
    whole = glyphs.bars[top] * int(full)
    return (whole + (glyphs.track if len(whole) < _BAR else "")).ljust(_BAR, glyphs.track)[:_BAR]


def _role(of: object) -> str:
    if not isinstance(of, float):
        return "dim"
    return "good" if of >= 0.8 else "warn" if of >= 0.3 else ""


def _number(value: float | Unavailable, form: str) -> str:
    return "n/a" if isinstance(value, Unavailable) else form.format(value)


def _half(kernel: KernelDram) -> float | None:
    low, high = kernel.low_gb_s, kernel.high_gb_s
    if isinstance(low, Unavailable) or isinstance(high, Unavailable):
        return None
    return (high - low) / 2


def _win(kernel: KernelDram, found: KernelBandwidth) -> str:
    """µs a step that a product with weights would save at the target."""
    saved = saved_ns(kernel, found.step_ns)
    return "" if saved is None else f"{saved / 1e3:.0f}"
