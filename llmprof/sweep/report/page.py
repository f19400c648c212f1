"""One HTML page: the picture as SVG, tables, fits. No script, nothing from elsewhere."""

from __future__ import annotations

import re
from html import escape

from llmprof.plaintext import one_line
from llmprof.sweep.curves import METRICS
from llmprof.sweep.report.content import Content
from llmprof.sweep.report.pictures import picture
from llmprof.sweep.report.tables import MOST_FAILED, number

MOST_ROWS = 2000
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;"
    "color:#1b1f24;background:#fff}svg{width:100%;height:auto}table{border-collapse:collapse;"
    "font-size:13px}td,th{border-bottom:1px solid #d0d7de;padding:3px 9px;text-align:right}"
    "td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}.doubt{color:#9a4a00}"
    ".range{color:#666;font-size:11px}"
)


def html_text(content: Content) -> str:
    """The whole page."""
    svg = picture(content, "svg").decode()
    svg = re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)  # XML declaration, DOCTYPE
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>llmprof sweep</title>',
        f"<style>{_STYLE}</style></head><body><h1>Sweep</h1><p>{_safe(content.title)}</p>",
        *(f'<p class="doubt">{_safe(text)}</p>' for text in content.doubts),
        svg,
        "<h2>Fits</h2><ul>",
        *(f"<li>{_safe(text)}</li>" for text in content.fits),
        "</ul><h2>Points</h2>",
        _table(content),
    ]
    if content.missing:
        parts += ["<h2>What is n/a</h2><ul>", *(f"<li>{_safe(t)}</li>" for t in content.missing),
                  "</ul>"]  # fmt: skip
    if content.failed:
        parts.append("<h2>Points that did not run</h2><ul>")
        parts += [f"<li>{_safe(point.words)}</li>" for point in content.failed[:MOST_FAILED]]
        if len(content.failed) > MOST_FAILED:
            parts.append(f"<li>and {len(content.failed) - MOST_FAILED} more (see the CSV)</li>")
        parts.append("</ul>")
    return "".join([*parts, "</body></html>\n"])


def _table(content: Content) -> str:
    shown = content.columns
    heads = ["hardware", "engine", content.axis, *(METRICS[metric] for metric in shown)]
    lines = ["<table><tr>", *(f"<th>{_safe(head)}</th>" for head in heads), "</tr>"]
    places = [(curve, place) for curve in content.curves for place in curve.places]
    for curve, place in places[:MOST_ROWS]:
        cells = [_safe(curve.hardware), _safe(curve.label), _safe(place.shown)]
        for metric in shown:
            value, bounds = place.value(metric), place.interval(metric)
            text = "n/a" if value is None else number(value)
            if bounds is not None:
                text += f' <span class="range">{number(bounds[0])}–{number(bounds[1])}</span>'
            cells.append(text)
        lines += ["<tr>", *(f"<td>{cell}</td>" for cell in cells), "</tr>"]
    lines.append("</table>")
    if len(places) > MOST_ROWS:
        lines.append(f"<p>The first {MOST_ROWS} of {len(places)}; the CSV has all.</p>")
    return "".join(lines)


def _safe(text: object) -> str:
    return escape(one_line(str(text), 500))
