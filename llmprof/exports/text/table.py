"""The plain-text summary of ``llmprof --headless``: one row an engine, then words.

Columns stand in bands. Bands that do not fit beside each other are stacked, each with the engines'
names again, so the numbers stay aligned at any width. Neither rich's nor tabulate's tables have
bands, and a headless run imports no rich.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from unicodedata import east_asian_width

from llmprof.analysis.timing.agreement import TokenAgreement
from llmprof.analysis.timing.compare import Comparison
from llmprof.analysis.timing.stats import CONFIDENCE, Distribution, Estimate
from llmprof.analysis.view.report import EngineReport, Report
from llmprof.analysis.view.traced import RunTrace, all_warnings
from llmprof.exports.json.host import host_sections
from llmprof.exports.text import trace_table
from llmprof.plaintext import one_line, shortened, told_apart
from llmprof.records import Maybe, Unavailable

COLUMN_GAP, BAND_GAP = "  ", "   "
LABEL_LIMIT = 18
TEXT_LINES = 2
NO_TRACE = Unavailable("no traced pass")

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class Notes:
    """Reasons for n/a, each said once and numbered in order of appearance."""

    reasons: dict[str, int] = field(default_factory=dict)

    def mark(self, reason: str) -> str:
        number = self.reasons.setdefault(one_line(reason), len(self.reasons) + 1)
        return "n/a" + str(number).translate(_SUPERSCRIPT)


@dataclass(frozen=True)
class Band:
    """Columns that belong together: a title, and for each column its header and cells."""

    title: str
    columns: tuple[tuple[str, tuple[str, ...]], ...]

    def lines(self) -> list[str]:
        """Title, header, rule and one line an engine, all equally wide."""
        widths = [max(map(len, (header, *cells))) for header, cells in self.columns]
        widths[0] += max(0, len(self.title) - sum(widths) - len(COLUMN_GAP) * (len(widths) - 1))
        rows = [tuple(header for header, _ in self.columns)]
        rows += zip(*(cells for _, cells in self.columns), strict=True)
        texts = [
            COLUMN_GAP.join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows
        ]
        total = len(texts[0])
        return [self.title.center(total), texts[0], "─" * total, *texts[1:]]


def render(report: Report, width: int = 80, trace: RunTrace | Unavailable = NO_TRACE) -> str:
    """The summary, no line of it longer than ``width`` (at least 60)."""
    width = max(width, 60)
    notes = Notes()
    head = [f"{report.tool} {report.tool_version}", report.state, report.schedule]
    blocks = [[*_wrapped(" · ".join(head), width), *_wrapped(report.workload, width)]]
    if report.message:
        blocks[0] += _wrapped(report.message, width)
    if report.engines:
        blocks += _stack(report.engines, _bands(report.engines, notes), width)
    else:
        blocks.append(["no engine in this run"])
    sections = {
        "Failed": [
            line
            for e in report.engines
            if e.failure
            for line in _wrapped(
                f"{e.label} ({e.failure.kind}): {e.failure.message}", width, "  ", "    "
            )
        ],
        "Comparison": [line for pair in report.pairs for line in _pair(pair, width)],
        **{
            title: [line[:width] for line in lines]
            for title, lines in trace_table.sections(trace, width).items()
        },
        **host_sections(trace, width),
        "Tokens": [
            line
            for item in report.agreement
            if not isinstance(item.common_prefix, Unavailable)
            for line in _wrapped(_agreement(item), width, "  ")
        ],
        "Text": [line for e in report.engines for line in _text(e, width)],
        "Warnings": [
            line
            for item in all_warnings(report, trace)
            for line in _wrapped(f"! {item.scope}: {item.text}", width, "  ", "    ")
        ],
        "Not measured": _missing(report, width),
        "Notes": [
            line
            for reason, number in notes.reasons.items()
            for line in _wrapped(
                f"{str(number).translate(_SUPERSCRIPT)} {reason}", width, "  ", "    "
            )
        ],
    }
    blocks += [[title, *lines] for title, lines in sections.items() if lines]
    text = "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)
    return text + "\n"


def _bands(engines: Sequence[EngineReport], notes: Notes) -> list[Band]:
    def column(
        header: str, value: Callable[[EngineReport], Maybe], unit: str = "", scale: float = 1
    ) -> tuple[str, tuple[str, ...]]:
        values = [_value(engine, value(engine)) for engine in engines]
        numbers = [v * scale for v in values if not isinstance(v, Unavailable)]
        digits = _decimals(numbers)
        cells = tuple(
            notes.mark(v.reason) if isinstance(v, Unavailable) else f"{v * scale:.{digits}f}{unit}"
            for v in values
        )
        return header, cells

    def itl(field_name: str) -> Callable[[EngineReport], Maybe]:
        def value(engine: EngineReport) -> Maybe:
            found = engine.steps.itl_ms
            return float(getattr(found, field_name)) if isinstance(found, Distribution) else found

        return value

    bands = [
        Band(
            "decode",
            (
                column("tok/s", lambda e: e.steps.tok_s.value),
                (f"{CONFIDENCE:.0%} interval", _intervals(engines, notes)),
            ),
        ),
        Band(
            "prefill",
            (
                column("TTFT ms", lambda e: e.steps.ttft_ms.value),
                column("tok/s", lambda e: e.steps.prefill_tok_s.value),
            ),
        ),
        Band(
            "inter-token latency, ms",
            tuple(column(name, itl(name)) for name in ("p50", "p95", "p99", "max")),
        ),
        Band(
            "bandwidth, modelled",
            (
                column("GB/s", lambda e: e.bandwidth.modelled_gb_s),
                column("of peak", lambda e: e.bandwidth.modelled_share, "%", 100),
            ),
        ),
    ]
    if any(not isinstance(e.bandwidth.measured_share, Unavailable) for e in engines):
        measured = (
            column("GB/s", lambda e: e.bandwidth.measured_gb_s),
            column("of peak", lambda e: e.bandwidth.measured_share, "%", 100),
        )
        bands.append(Band("bandwidth, measured", measured))
    bands.append(Band("energy", (column("J/token", lambda e: e.steps.joule_per_token),)))
    bands.append(Band("tracing", (column("cost", _tracing_cost, "%", 100),)))
    return bands


def _tracing_cost(engine: EngineReport) -> Maybe:
    """As a share of the untraced step; below 0 where noise is larger than the cost."""
    ratio = engine.steps.slowdown.ratio
    return ratio if isinstance(ratio, Unavailable) else ratio - 1


def _value(engine: EngineReport, value: Maybe) -> Maybe:
    """The value; all that a failed engine lacks has one reason."""
    if engine.failure and isinstance(value, Unavailable):
        return Unavailable(f"{engine.label} failed, see above")
    return value


def _intervals(engines: Sequence[EngineReport], notes: Notes) -> tuple[str, ...]:
    bounds: list[tuple[Maybe, Maybe]] = [
        (_value(e, e.steps.tok_s.low), _value(e, e.steps.tok_s.high)) for e in engines
    ]
    digits = _decimals([b for pair in bounds for b in pair if not isinstance(b, Unavailable)])
    cells = []
    for low, high in bounds:
        if isinstance(low, Unavailable):
            cells.append(notes.mark(low.reason))
        elif isinstance(high, Unavailable):
            cells.append(notes.mark(high.reason))
        else:
            cells.append(f"{low:.{digits}f}–{high:.{digits}f}")
    return tuple(cells)


def _decimals(values: Iterable[float]) -> int:
    """Digits after the point that give the smallest value of a column three figures."""
    sizes = [abs(v) for v in values if v]
    if not sizes:
        return 1
    return min(3, max(0, 2 - math.floor(math.log10(min(sizes)))))


def _stack(engines: Sequence[EngineReport], bands: Sequence[Band], width: int) -> list[list[str]]:
    """Tables of as many bands as fit beside the labels."""
    labels = told_apart([e.label for e in engines], LABEL_LIMIT)
    label_width = max(map(len, ("engine", *labels)))
    names = ["", "engine", "─" * label_width, *labels]
    stub = [name.ljust(label_width) for name in names]
    tables, current = [], stub
    for band in bands:
        lines = band.lines()
        if current is not stub and len(current[0]) + len(BAND_GAP) + len(lines[0]) > width:
            tables.append(current)
            current = stub
        current = [left + BAND_GAP + right for left, right in zip(current, lines, strict=True)]
    return [*tables, current]


def _pair(pair: Comparison, width: int) -> list[str]:
    lines = _wrapped(pair.verdict, width, "  ")
    if not isinstance(pair.tok_s_ratio.value, Unavailable):
        kind = "paired" if pair.paired else "unpaired"
        basis = [f"tok/s of {pair.rounds} {kind} round{'s' * (pair.rounds != 1)}"]
        if not isinstance(pair.ttft_ratio.value, Unavailable):
            basis.append(f"TTFT of {pair.b} / {pair.a}: {_ratio(pair.ttft_ratio)}")
        if pair.processes > 1:
            text = f"{pair.processes} process pairs"
            if not isinstance(pair.process_share, Unavailable):
                text += f", {pair.process_share:.0%} of the variance between them"
            basis.append(text)
        if pair.allowance:
            basis.append(f"± {pair.allowance:.0%} allowed for the difference of processes")
        lines += _wrapped(" · ".join(basis), width, "    ")
    for warning in pair.warnings:
        lines += _wrapped(f"! {warning}", width, "    ", "      ")
    return lines


def _ratio(item: Estimate) -> str:
    if isinstance(item.low, Unavailable) or isinstance(item.high, Unavailable):
        return f"{item.value:.2f}×"
    return f"{item.value:.2f}× ({item.low:.2f}–{item.high:.2f})"


def _agreement(item: TokenAgreement) -> str:
    return (
        f"{item.a} and {item.b}: the first {item.common_prefix} of {item.length} greedy tokens "
        f"are equal, as are {item.agreement:.0%} of all positions"
    )


def _text(engine: EngineReport, width: int) -> list[str]:
    if isinstance(engine.text, Unavailable):
        return []
    label = shortened(engine.label, LABEL_LIMIT)
    return _wrapped(f"{label}: {engine.text}", width, "  ", "    ", TEXT_LINES)


def _missing(report: Report, width: int) -> list[str]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for item in report.missing:
        grouped.setdefault((item.scope, item.reason), []).append(item.name)
    lines = []
    for (scope, reason), names in grouped.items():
        lines += _wrapped(f"{scope}: {', '.join(names)}: {reason}", width, "  ", "    ")
    return lines


def _wrapped(
    text: str, width: int, indent: str = "", hanging: str | None = None, limit: int = 8
) -> list[str]:
    """Printable lines of at most ``width`` cells; more than ``limit`` lines end in ``…``."""
    text = one_line(text, width * limit)
    # textwrap counts characters: where some take two cells, halve the room.
    room = width if all(east_asian_width(c) not in "WF" for c in text) else width // 2
    following = indent if hanging is None else hanging
    lines = wrap(text, room, initial_indent=indent, subsequent_indent=following)
    if len(lines) > limit:
        lines = [*lines[: limit - 1], lines[limit - 1][: room - 1] + "…"]
    return lines
