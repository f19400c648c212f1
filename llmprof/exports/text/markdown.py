"""``--to markdown``: the report as tables for a pull request or an issue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmprof.analysis.device.waterfall import verdict_words
from llmprof.analysis.view.traced import EngineTrace, RunTrace, all_warnings
from llmprof.exports.formats import Progress
from llmprof.exports.loaded import Loaded, load
from llmprof.plaintext import one_line
from llmprof.records import (
    Maybe,
    Unavailable,
)
from llmprof.records.steps import (
    StepChoice,
)

KERNELS = 15


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """One document."""
    parts = ["\n".join(_run(run)) for run in load(files, progress, steps)]
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _run(run: Loaded) -> Iterator[str]:
    report = run.report
    yield f"# {_text(run.name)}"
    yield ""
    yield _text(f"{report.tool} {report.tool_version}, {report.state}, {report.workload}")
    yield ""
    head = "engine|tok/s|95 % interval|TTFT ms|ITL p50 ms|p95|p99|GB/s modelled|J/token|tracing ×"
    yield from _table(head.split("|"), (_engine(engine) for engine in report.engines))
    for pair in report.pairs:
        yield f"* {_text(pair.verdict)}"
    if not isinstance(run.trace, Unavailable):
        yield from _steps(run.trace)
        for fall in run.trace.falls:
            chosen = fall.traced if isinstance(fall.timing, Unavailable) else fall.timing
            if isinstance(chosen, Unavailable):
                continue
            yield from ("", f"## From {_text(fall.a)} to {_text(fall.b)}", "")
            yield from (_text(verdict_words(chosen)), "")
            rows = [
                [p.category, f"{p.a_ns / 1e6:.3f}", f"{p.b_ns / 1e6:.3f}", f"{p.delta_ms:+.3f}"]
                for p in chosen.parts
            ]
            ends = (chosen.a_ns / 1e6, chosen.b_ns / 1e6)
            rows.append(["step", *(f"{ms:.3f}" for ms in ends), f"{chosen.delta_ns / 1e6:+.3f}"])
            yield from _table(["ms a step", fall.a, fall.b, "change"], rows)
            yield _text(f"{chosen.provenance}: {chosen.note}")
        for trace in run.trace.engines:
            yield from _kernels(trace)
            yield from _dram(trace)
    notes = [f"{w.scope}: {w.text}" for w in all_warnings(report, run.trace)]
    notes += [f"{m.scope}: {m.name} is not available: {m.reason}" for m in report.missing]
    if notes:
        yield from ("", "## Warnings and what was not measured", "")
        yield from (f"* {_text(note)}" for note in notes)


def _engine(engine: object) -> list[str]:
    from llmprof.analysis.view.report import EngineReport

    assert isinstance(engine, EngineReport)
    steps, itl = engine.steps, engine.steps.itl_ms
    p50, p95, p99 = (
        ("n/a",) * 3
        if isinstance(itl, Unavailable)
        else (f"{itl.p50:.2f}", f"{itl.p95:.2f}", f"{itl.p99:.2f}")
    )
    low, high = _number(steps.tok_s.low, 1), _number(steps.tok_s.high, 1)
    return [
        engine.label,
        _number(steps.tok_s.value, 1),
        "n/a" if "n/a" in (low, high) else f"{low}–{high}",
        _number(steps.ttft_ms.value, 2),
        p50,
        p95,
        p99,
        _number(engine.bandwidth.modelled_gb_s, 0),
        _number(steps.joule_per_token, 2),
        _number(steps.slowdown.ratio, 2),
    ]


def _steps(trace: RunTrace) -> Iterator[str]:
    """Traced steps: of those that count, then by kind."""
    means, kinds = [], []
    for engine in trace.engines:
        report = engine.kernels
        if isinstance(report, Unavailable):
            continue
        values = (report.wall_ms_per_step, report.busy_ms_per_step, report.idle_ms_per_step)
        cells = [_number(value, 3) for value in values]
        if report.idle_at_most and cells[2] != "n/a":
            cells[2] = f"≤ {cells[2]}"
        counts = (report.kernels_per_step, report.launches_per_step)
        means.append([engine.label, *cells, *(_number(value, 0) for value in counts)])
        for group in report.groups:
            times = (group.wall_ms, group.busy_ms, group.idle_ms)
            kinds.append(
                [
                    engine.label,
                    f"{group.kind}{'' if group.counted else ', not counted'}",
                    str(group.steps),
                    *(f"{ms:.3f}" for ms in times),
                    *(f"{count:.0f}" for count in (group.kernels, group.launches)),
                ]
            )
    columns = ["step ms", "GPU busy ms", "idle ms", "kernels", "launches"]
    if means:
        yield from ("", "## Traced decode steps, mean times and median counts", "")
        yield from _table(["engine", *columns], means)
    if kinds:
        yield from ("", "## Traced steps by kind, medians", "")
        yield from _table(["engine", "kind", "steps", *columns], kinds)


def _kernels(trace: EngineTrace) -> Iterator[str]:
    report = trace.kernels
    if isinstance(report, Unavailable):
        return
    yield from ("", f"## Kernels of {_text(trace.label)}, {report.scope}", "")
    yield from _table(
        ["kernel", "category", "share", "a step", "mean µs"],
        (
            [
                k.short_name,
                k.category,
                f"{k.share:.1%}",
                _number(k.count_per_step, 1),
                f"{k.mean_ns / 1e3:.2f}",
            ]
            for k in report.kernels[:KERNELS]
        ),
    )


def _dram(trace: EngineTrace) -> Iterator[str]:
    found = trace.dram
    if isinstance(found, Unavailable):
        return
    yield from ("", f"## DRAM by kernel of {_text(trace.label)}, measured", "")
    ceiling = _number(found.ceiling_gb_s, 0)
    if not isinstance(found.headroom, Unavailable):
        yield f"{_text(found.headroom.words)}."
    yield (
        f"A copy reaches {ceiling} GB/s, the specification says {found.spec_gb_s:.0f}."
        f" {found.samples} samples in {found.steps} steps, R² {found.r2:.4f}."
    )
    yield ""
    yield from _table(
        ["kernel", "after", "share", "µs", "GB/s", "95 %", "of a copy", "MB", "along it, GB/s"],
        (
            [
                " + ".join((k.short_name, *k.others)),
                k.after,
                f"{k.share:.1%}",
                f"{k.median_ns / 1e3:.2f}",
                _number(k.dram_gb_s, 0),
                f"{_number(k.low_gb_s, 0)}–{_number(k.high_gb_s, 0)}",
                "n/a" if isinstance(k.of_ceiling, Unavailable) else f"{k.of_ceiling:.0%}",
                _number(k.mb_per_launch, 2),
                " ".join(f"{v:.0f}" for v in k.profile_gb_s),
            ]
            for k in found.kernels[:KERNELS]
        ),
    )


def _number(value: Maybe, digits: int) -> str:
    return "n/a" if isinstance(value, Unavailable) else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(_text(cell) for cell in head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_text(cell) for cell in row)} |"
    yield ""


def _text(text: str) -> str:
    """One line without a sign that Markdown or HTML would act on."""
    line = one_line(text, 200)
    for sign in "\\`*_|[]#":
        line = line.replace(sign, f"\\{sign}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
