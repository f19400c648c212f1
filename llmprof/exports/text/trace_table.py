"""The traced pass in plain text: where a step's time goes, and what fills it."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from llmprof.analysis.bandwidth.pm_steps import CONTRADICTION
from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.device.naming.categories import IDLE
from llmprof.analysis.device.waterfall import StepParts, Waterfall, verdict_words
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.exports.text import ranks_table, steps_table
from llmprof.plaintext import one_line, shortened, told_apart
from llmprof.records import Maybe, Unavailable

TOP = 5
LABEL = 24


def sections(trace: RunTrace | Unavailable, width: int) -> dict[str, list[str]]:
    """Titled blocks for the summary; without a traced pass there are none."""
    if isinstance(trace, Unavailable):
        return {}
    reports = [
        (e, report) for e in trace.engines if not isinstance(report := e.kernels, Unavailable)
    ]
    found = {
        **{
            f"Steps of {one_line(engine.label, LABEL)}": steps_table.lines(engine, width)
            for engine in trace.engines
        },
        "Traced decode steps (means)": _gpu(reports),
        "Mean traced step by category, ms": _categories([e for e, _ in reports], width),
    }
    for engine, report in reports:
        found[f"Kernels of {shortened(engine.label, LABEL)}"] = _kernels(report, width)
    for engine in trace.engines:
        found[f"Operators of {shortened(engine.label, LABEL)}, self time"] = _operators(engine)
    found |= ranks_table.sections(trace, width)
    found["Waterfall"] = _words(trace, width)
    for engine in trace.engines:
        found[f"DRAM by kernel of {one_line(engine.label, LABEL)}, measured"] = _dram_kernels(
            engine, width
        )
    found["DRAM, measured by PM sampling against modelled, mean over the decode steps"] = [
        line for engine in trace.engines for line in _dram(engine)
    ]
    return {title: lines for title, lines in found.items() if lines}


def _gpu(reports: Sequence[tuple[EngineTrace, KernelReport]]) -> list[str]:
    if not reports:
        return []
    lines = [
        f"  {'':<{LABEL}}{'step':>10}{'GPU busy':>11}{'idle':>11}{'kernels':>9}{'launches':>10}"
    ]
    for engine, r in reports:
        cells = (
            _ms(r.wall_ms_per_step).rjust(10),
            _ms(r.busy_ms_per_step).rjust(11),
            _idle(r).rjust(11),
            _count(r.kernels_per_step).rjust(9),
            _count(r.launches_per_step).rjust(10),
        )
        lines.append(f"  {shortened(engine.label, LABEL):<{LABEL}}{''.join(cells)}")
        lines += _devices(r)
        if isinstance(r.steps, Unavailable):
            lines.append(f"    {one_line(r.steps.reason)}")
    return lines


def _idle(report: KernelReport) -> str:
    """With ``≤`` where records were lost."""
    known = not isinstance(report.idle_ms_per_step, Unavailable)
    return ("≤ " if known and report.idle_at_most else "") + _ms(report.idle_ms_per_step)


def _devices(report: KernelReport) -> list[str]:
    """A line a device where there are several; busy and idle of the engine are the first one's."""
    if len(report.devices) < 2:
        return []
    ranked = sorted(report.devices, key=lambda device: not device.primary)
    return [
        f"    {f'GPU {d.device}' + ' (as above)' * d.primary:<{LABEL + 8}}"
        f"{_ms(d.busy_ms_per_step):>11}{_ms(d.idle_ms_per_step):>11}"
        for d in ranked
    ]


def _categories(engines: Sequence[EngineTrace], width: int) -> list[str]:
    parts = [p for e in engines if not isinstance(p := e.parts, Unavailable)]
    room = max(1, (width - 2 - LABEL) // 12)
    shown: list[StepParts] = parts[:room]
    if not shown:
        return []
    names = sorted(
        {name for p in shown for name in p.parts_ns},
        key=lambda name: (name == IDLE, -max(p.parts_ns.get(name, 0) for p in shown)),
    )
    heads = told_apart([p.label for p in shown], 11)
    head = "".join(label.rjust(12) for label in heads)
    lines = [f"  {'':<{LABEL}}{head}"]
    for name in names:
        row = "".join(f"{p.parts_ns.get(name, 0) / 1e6:12.3f}" for p in shown)
        lines.append(f"  {one_line(name, LABEL):<{LABEL}}{row}")
    total = "".join(f"{p.step_ns / 1e6:12.3f}" for p in shown)
    return [*lines, f"  {'step':<{LABEL}}{total}"]


def _kernels(report: KernelReport, width: int) -> list[str]:
    name_width = max(20, min(48, width - 56))
    lines = [f"  {'':<{name_width}} {'share':>7} {'a step':>7} {'mean µs':>8}  category"]
    lines += [
        f"  {one_line(k.short_name, name_width):<{name_width}} {k.share:7.1%}"
        f" {_count(k.count_per_step):>7} {k.mean_ns / 1e3:8.2f}  {k.category}"
        for k in report.kernels[:TOP]
    ]
    rest = len(report.kernels) - TOP
    if rest > 0:
        share = sum(k.share for k in report.kernels[TOP:])
        lines.append(f"  {f'{rest} more':<{name_width}} {share:7.1%}")
    return lines


def _operators(engine: EngineTrace) -> list[str]:
    total = sum(o.total_ns for o in engine.operators)
    steps = engine.record.steps if engine.record else 0
    if not total or not steps:
        return []
    lines = [f"  {'':<40} {'share':>7} {'calls':>7} {'ms in all':>10}"]
    lines += [
        f"  {one_line(o.name, 40):<40} {o.total_ns / total:7.1%} {o.calls:>7}"
        f" {o.total_ns / 1e6:10.2f}"
        for o in engine.operators[:TOP]
    ]
    return lines


def _dram_kernels(engine: EngineTrace, width: int) -> list[str]:
    found = engine.dram
    if isinstance(found, Unavailable):
        return []
    name_width = max(20, min(48, width - 48))
    lines = [] if isinstance(found.headroom, Unavailable) else [f"  {found.headroom.words}"]
    head = f"{'share':>7} {'GB/s':>6} {'95 %':>11} {'of copy':>8} {'MB':>9}"
    lines.append(f"  {'':<{name_width}} {head}")
    for k in found.kernels[:TOP]:
        low, high = (_plain(v) for v in (k.low_gb_s, k.high_gb_s))
        of = "n/a" if isinstance(k.of_ceiling, Unavailable) else f"{k.of_ceiling:.0%}"
        size = "n/a" if isinstance(k.mb_per_launch, Unavailable) else f"{k.mb_per_launch:.2f}"
        lines.append(
            f"  {one_line(k.short_name, name_width):<{name_width}} {k.share:7.1%}"
            f" {_plain(k.dram_gb_s):>6} {f'{low}-{high}':>11} {of:>8} {size:>9}"
        )
    return lines


def _plain(value: Maybe) -> str:
    return "n/a" if isinstance(value, Unavailable) else f"{value:.0f}"


def _dram(engine: EngineTrace) -> list[str]:
    sampled = engine.sampled
    if isinstance(sampled, Unavailable):
        if not sampled.reason.startswith(CONTRADICTION):
            return []
        return [
            f"  {shortened(engine.label, LABEL):<{LABEL}}        n/a measured: {sampled.reason}"
        ]
    cells = [
        "n/a" if isinstance(v, Unavailable) else f"{v:.0f} GB/s"
        for v in (sampled.mean_measured_gb_s, sampled.mean_modelled_gb_s)
    ]
    own = sum(value is not None for value in sampled.measured_gb_s)
    note = (
        sampled.why_no_steps
        or f"{own} of {len(sampled.measured_gb_s)} steps have a value of their own"
    )
    return [
        f"  {shortened(engine.label, LABEL):<{LABEL}}{cells[0]:>11} measured"
        f" {cells[1]:>11} modelled",
        f"    {one_line(note)}; a sample every {sampled.interval_ns / 1e3:.0f} µs",
    ]


def _words(trace: RunTrace, width: int) -> list[str]:
    lines: list[str] = []
    for fall in trace.falls:
        chosen = fall.traced if isinstance(fall.timing, Unavailable) else fall.timing
        if isinstance(chosen, Unavailable):
            continue
        for indent, text in (("  ", verdict_words(chosen)), ("    ", _basis(chosen))):
            lines += wrap(
                one_line(text), width, initial_indent=indent, subsequent_indent=f"{indent}  "
            )
    return lines


def _basis(fall: Waterfall) -> str:
    return f"{fall.provenance}: {fall.note}"


def _ms(value: Maybe) -> str:
    return "n/a" if isinstance(value, Unavailable) else f"{value:.3f} ms"


def _count(value: Maybe) -> str:
    return "n/a" if isinstance(value, Unavailable) else f"{value:.0f}"
