"""Groups of ranks: a strip of lateness a rank, what each spends a step, what collectives cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from llmprof.analysis.ranks.matched.twins import SkewReport
from llmprof.analysis.ranks.results import CollectiveLine, RankLine, RanksReport
from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.records import Maybe, Unavailable
from llmprof.runfile.trace.rows import Ints
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_text, row, rule, width_of, wrap
from llmprof.tui.view import View, trace_or_why

_NAME: Final = 15
_NUMBER: Final = 9
_HEADS: Final = ("wait", "transfer", "exposed", "compute", "idle", "late", "critical")
_NONE: Final = (
    "no group of ranks: one process computes every step. Several GPUs: llmprof --tp N, llmprof"
    " record of a program with several ranks, or the files of all ranks of one job together"
)


def page(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    trace = trace_or_why(snapshot, view, width)
    if isinstance(trace, list):
        return trace
    out: list[Row] = []
    for group in trace.ranks:
        out += [*_group(group, view, width), ()]
    for skew in trace.skews:
        out += [*_skew(skew, view, width), ()]
    for label, why in trace.no_ranks.items():
        text = f"{clean(label)}: n/a: {clean(why)}"
        out += [row(Span(line, "dim")) for line in wrap(text, width)]
    return out or [row(Span(line, "dim")) for line in wrap(_NONE, width)]


def _group(group: RanksReport, view: View, width: int) -> list[Row]:
    estimate = group.provenance == "modelled"
    what = (
        f"{len(group.ranks)} of {group.world} ranks, {group.steps} steps of {group.step_ms:.2f} ms"
    )
    title = row(Span(clean(group.title), "strong"))
    out = [rule(title, row(Span(what, "dim")), width, view.glyphs.track)]
    role = {"late": "warn", "uneven": "warn", "balanced": "good"}.get(group.verdict, "dim")
    out += [row(Span(line, role)) for line in wrap(clean(group.words), width)]
    if not estimate:
        out += [(), *_strips(group, view, width)]
    head = "".join(f"{text:>{_NUMBER}}" for text in _HEADS)
    out += [(), fit(row(Span(f"{'ms a step':<{_NAME}}{head}", "dim")), width)]
    out += [fit(_rank(line, group, estimate), width) for line in group.ranks]
    out += [(), *_collectives(group, width), ()]
    if group.gpus:
        out += [*_gpus(group, width), ()]
    out += [row(Span(line, "dim")) for line in wrap(clean(group.clock_words), width)]
    for note in group.notes:
        out += [row(Span(line, "dim")) for line in wrap(clean(note), width)]
    return out


def _skew(group: SkewReport, view: View, width: int) -> list[Row]:
    """Processes that do the same and share no collective: how far apart they are."""
    what = f"{len(group.ranks)} GPUs, {group.kernels:,} kernels alike"
    title = row(Span(clean(group.title), "strong"))
    out = [rule(title, row(Span(what, "dim")), width, view.glyphs.track)]
    out += [row(Span(line)) for line in wrap(clean(group.words), width)]
    strips, _, top = _bars([line.name for line in group.ranks], group.behind_ns, view, width)
    out += [(), *strips]
    text = f"behind the first one, from the first kernel to the last: a full bar {top / 1e3:.1f} µs"
    out += [row(Span(line, "dim")) for line in wrap(text, width)]
    heads = ("behind, µs", "95 %", "most", "first")
    head = f"{'begins':<{_NAME}}" + "".join(f"{text:>12}" for text in heads)
    out += [(), fit(row(Span(head, "dim")), width)]
    for line in group.ranks:
        numbers = (line.behind_us, line.behind_95_us, line.behind_most_us)
        cells = "".join(f"{number:>12.1f}" for number in numbers) + f"{line.first:>12.0%}"
        out.append(fit(row(Span(fit_text(line.name, _NAME), "bright"), Span(cells)), width))
    out.append(())
    for note in group.notes:
        out += [row(Span(line, "dim")) for line in wrap(clean(note), width)]
    return out


def _bars(names: Sequence[str], values: Ints, view: View, width: int) -> tuple[list[Row], int, int]:
    """A strip a rank of values (ranks, columns), the most of the columns in a cell; how many cells,
    and what a full bar is. The height of a bar says it without any colour; the rank with the most
    of a cell has the colour of a warning."""
    bars, columns = view.glyphs.bars, values.shape[1]
    cells = min(max(8, width - _NAME), columns)
    edge = np.linspace(0, columns, cells + 1).astype(int)
    most = np.stack([values[:, a:b].max(1) for a, b in pairwise(edge.tolist())], 1)
    top = int(most.max()) if most.size else 0
    out: list[Row] = []
    for n, name in enumerate(names):
        spans = [Span(fit_text(name, _NAME))]
        for cell in range(cells):
            share = most[n, cell] / top if top else 0.0
            # The least bar is a trace of lateness: none at all is empty.
            level = max(1, round(share * (len(bars) - 1))) if share > 0.02 else 0
            critical = share > 0.02 and int(most[:, cell].argmax()) == n
            spans.append(Span(bars[level], "warn" if critical else "dim"))
        out.append(fit(row(*spans), width))
    return out, cells, top


def _strips(group: RanksReport, view: View, width: int) -> list[Row]:
    """Rank × step: how long the others waited for it."""
    out, cells, top = _bars([line.name for line in group.ranks], group.late_ns, view, width)
    steps = group.late_ns.shape[1]
    each = -(-steps // cells) if cells else 1
    cell_text = "a cell is a step" if each == 1 else f"a cell is up to {each} steps"
    text = f"the others waited, steps 1 to {steps}: {cell_text}, a full bar {top / 1e6:.3f} ms"
    out += [row(Span(line, "dim")) for line in wrap(text, width)]
    return out


def _rank(line: RankLine, group: RanksReport, estimate: bool) -> Row:
    about = "~" if estimate else ""
    late = group.reason is not None and group.reason.rank == line.rank
    cells = [
        f"{about}{line.wait_ms:.3f}",
        f"{about}{line.transfer_ms:.3f}",
        f"{line.exposed_ms:.3f}",
        f"{line.compute_ms:.3f}",
        f"{line.idle_ms:.3f}",
        "n/a" if estimate else f"{line.late_ms:.3f}",
        "n/a" if estimate else f"{line.late_steps / max(1, group.steps):.0%}",
    ]
    text = "".join(f"{cell:>{_NUMBER}}" for cell in cells)
    return row(Span(fit_text(line.name, _NAME), "warn" if late else "bright"), Span(text))


def _gpus(group: RanksReport, width: int) -> list[Row]:
    """Power, memory, clock and counters of each rank's GPU; why its clock was held back."""
    heads = ("power W", "memory", "SM MHz", "DRAM", "SM active", "NVLink")
    out = [fit(row(Span(f"{'GPU':<{_NAME}}" + "".join(f"{h:>10}" for h in heads), "dim")), width)]
    for line, gpu in zip(group.ranks, group.gpus, strict=True):
        cells = (
            _number(gpu.power_w, ".0f"),
            _number(gpu.memory_used_mib, ".1f", " GiB", 1 / 1024),
            _number(gpu.sm_clock_mhz, ".0f"),
            _number(gpu.dram_pct, ".1f", " %"),
            _number(gpu.sm_active_pct, ".1f", " %"),
            _number(gpu.nvlink_gb_s, ".0f"),
        )
        text = "".join(f"{cell:>10}" for cell in cells)
        out.append(fit(row(Span(fit_text(line.name, _NAME), "bright"), Span(text)), width))
        if gpu.throttle:
            held = ", ".join(f"{clean(name)} {share:.0%}" for name, share in gpu.throttle)
            text = f"  GPU {gpu.device} was held back: {held} of the samples"
            out += [row(Span(one, "warn")) for one in wrap(text, width)]
    return out


def _number(value: Maybe, form: str, unit: str = "", factor: float = 1.0) -> str:
    return "n/a" if isinstance(value, Unavailable) else f"{value * factor:{form}}{unit}"


def _collectives(group: RanksReport, width: int) -> list[Row]:
    longest = 2 + max((width_of(row(Span(clean(c.name)))) for c in group.collectives), default=0)
    name, link = max(16, min(longest, width - 62)), group.nvlink_gb_s
    head = (
        f"{'collective':<{name}}{'a step':>8}{'bytes':>10}{'transfer':>11}{'wait':>10}"
        f"{'bus GB/s':>10}{'NVLink':>8}"
    )
    out = [fit(row(Span(head, "dim")), width)]
    for one in group.collectives:
        bound = "≤" if one.fused else ""
        text = (
            f"{one.per_step:>8.1f}{_bytes(one):>10}{f'{bound}{one.transfer_us:.1f} µs':>11}"
            f"{f'{bound}{one.wait_us:.1f} µs':>10}{one.bus_text:>10}"
            f"{one.link_text(link):>8}"
        )
        line = row(Span(fit_text(clean(one.name), name - 1)), Span(" "), Span(text))
        out.append(fit(line, width))
    return out


def _bytes(one: CollectiveLine) -> str:
    if isinstance(one.bytes, Unavailable):
        return "n/a"
    return f"{one.bytes} B" if one.bytes < 1 << 20 else f"{one.bytes / 2**20:.1f} MiB"
