"""Which steps a report is about, in plain text: how they are known, by kind, and the slow ones."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.view.traced import EngineTrace
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

LABEL = 24
OUTLIERS = 5


def lines(trace: EngineTrace, width: int) -> list[str]:
    """Of one engine; nothing where llmprof drove it and all steps are of one kind."""
    report = trace.kernels
    several = not isinstance(report, Unavailable) and (len(report.groups) > 1 or report.outliers)
    if trace.steps_found.source == "driven" and not several:
        return []
    made = list(_known(trace, width))
    if not isinstance(report, Unavailable):
        made += _groups(report)
        made += _outliers(report, width)
    return made


def _known(trace: EngineTrace, width: int) -> Iterator[str]:
    found, totals = trace.steps_found, trace.totals
    yield from _wrapped(f"{found.source}: {found.words}", width)
    for text in found.left_out:
        yield from _wrapped(f"left out: {text}", width)
    if found.source in ("none", "detected") or found.left_out:
        for text in found.candidates[:3]:
            yield from _wrapped(f"could also be: {text}", width)
    if totals is not None:
        yield (
            f"  whole file: {totals.kernels:,} kernels, {totals.kernel_ns / 1e6:.3f} ms of them in"
            f" {(totals.end_ns - totals.start_ns) / 1e6:.3f} ms"
        )


def _groups(report: KernelReport) -> Iterator[str]:
    if not report.groups:
        return
    yield (
        f"  {'kind':<12}{'steps':>7}{'step':>12}{'GPU busy':>12}{'idle':>12}{'kernels':>9}"
        f"{'launches':>10}{'tok/s':>9}"
    )
    for group in report.groups:
        rate = "n/a" if group.tok_s is None else f"{group.tok_s:.1f}"
        yield (
            f"  {group.kind + ('' if group.counted else ' *'):<12}{group.steps:>7}"
            f"{group.wall_ms:>9.3f} ms{group.busy_ms:>9.3f} ms{group.idle_ms:>9.3f} ms"
            f"{group.kernels:>9.0f}{group.launches:>10.0f}{rate:>9}"
        )
    if not all(group.counted for group in report.groups):
        yield "  * not in the means and medians of this report"
    if report.unattributed_kernels:
        yield (
            f"  {report.unattributed_kernels:,} kernels ({report.unattributed_ns / 1e6:.3f} ms)"
            " could not be assigned to a step: counts a step may be too low by these"
        )


def _outliers(report: KernelReport, width: int) -> Iterator[str]:
    for outlier in report.outliers[:OUTLIERS]:
        yield from _wrapped(
            f"slow: step {outlier.step}, {outlier.wall_ns / 1e6:.3f} ms, {outlier.ratio:.1f}x the"
            f" median: {outlier.reason}",
            width,
        )
    rest = len(report.outliers) - OUTLIERS
    if rest > 0:
        yield f"  {rest} more slow steps (--json)"


def _wrapped(text: str, width: int) -> list[str]:
    made = wrap(one_line(text, 1000), max(20, width - 4))
    return [f"{'  ' if n == 0 else '    '}{part}" for n, part in enumerate(made)]
