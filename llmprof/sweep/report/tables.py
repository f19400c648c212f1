"""Tables of a sweep: CSV of every row, Markdown of the curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from llmprof.plaintext import one_line
from llmprof.sweep.curves import METRICS, Curve
from llmprof.sweep.report.content import Content
from llmprof.sweep.rows import COUNTS, NUMBERS, TEXTS, Row

MOST_FAILED = 50


def csv_text(rows: Sequence[Row]) -> str:
    """Every row of ``points.parquet``; a column for each field and category, empty for n/a."""
    fields = list(dict.fromkeys(name for row in rows for name in row["fields"]))
    categories = sorted({name for row in rows for name in row.get("categories") or ()})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    plain = (*TEXTS, *COUNTS, *NUMBERS)
    writer.writerow(
        [*(f"field:{name}" for name in fields), *plain, *(f"category:{c} (ms)" for c in categories)]
    )
    for row in rows:
        found = row.get("categories") or {}
        cells = [
            *(row["fields"].get(name) for name in fields),
            *(row.get(name) for name in plain),
            *(found.get(name) for name in categories),
        ]
        writer.writerow([_cell(cell) for cell in cells])
    return out.getvalue()


def _cell(value: object) -> str:
    """Text that a spreadsheet would run as a formula gets a quote before it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    text = one_line(str(value), 2000)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not isinstance(value, int) else text


def markdown(content: Content) -> str:
    """Curves as tables, categories along them, fits, doubts, failed points."""
    lines = ["# Sweep", "", _md(content.title), ""]
    lines += [f"> {_md(text)}" for text in content.doubts]
    if content.doubts:
        lines.append("")
    for kind in dict.fromkeys(curve.hardware for curve in content.curves):
        of_kind = [curve for curve in content.curves if curve.hardware == kind]
        lines += [f"## {_md(kind)}", ""]
        lines += _curves(of_kind, content.axis, content.columns)
        for curve in of_kind:
            lines += _categories(curve, content.axis)
    if content.fits:
        lines += ["## Fits", "", *(f"- {_md(text)}" for text in content.fits), ""]
    if content.missing:
        lines += ["## What is n/a", "", *(f"- {_md(text)}" for text in content.missing), ""]
    if content.failed:
        lines += ["## Points that did not run", ""]
        lines += [f"- {_md(point.words)}" for point in content.failed[:MOST_FAILED]]
        if len(content.failed) > MOST_FAILED:
            lines.append(f"- and {len(content.failed) - MOST_FAILED} more (see the CSV)")
        lines.append("")
    return "\n".join(lines)


def _curves(found: Sequence[Curve], axis: str, shown: Sequence[str]) -> list[str]:
    head = ["engine", axis, *(METRICS[metric] for metric in shown)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * len(shown)}"]
    for curve in found:
        for place in curve.places:
            cells = [_md(curve.label), place.shown]
            for metric in shown:
                value, bounds = place.value(metric), place.interval(metric)
                text = "n/a" if value is None else number(value)
                if bounds is not None:
                    text += f" ({number(bounds[0])}–{number(bounds[1])})"
                cells.append(text)
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _categories(curve: Curve, axis: str) -> list[str]:
    """ms a step of each category at each place, and its share of the traced step."""
    found = [place.categories() for place in curve.places]
    if not any(found):
        return []
    names = sorted({n for c in found for n in c}, key=lambda n: -max(c.get(n, 0.0) for c in found))
    lines = [
        f"Time of a traced step by category, ms (share), {_md(curve.label)}:",
        "",
        f"| category | {' | '.join(f'{axis} {p.shown}' for p in curve.places)} |",
        f"|---|{'---:|' * len(found)}",
    ]
    for name in names:
        cells = []
        for parts in found:
            total = sum(parts.values())
            # A traced step without a kernel of that kind spends no time on it.
            ms = parts.get(name, 0.0)
            cells.append(f"{number(ms)} ({ms / total:.0%})" if parts else "n/a")
        lines.append(f"| {_md(name)} | {' | '.join(cells)} |")
    return [*lines, ""]


def number(value: float) -> str:
    """Four digits that count."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3g}" if size < 1 else f"{value:.2f}"


def _md(text: object) -> str:
    """Untrusted text: one line that Markdown and HTML take for text."""
    plain = one_line(str(text), 500)
    for sign in "\\|*_`[]<>#":
        plain = plain.replace(sign, f"\\{sign}") if sign != "<" else plain.replace("<", "&lt;")
    return plain
