"""What became of the gates, for a CI: a JUnit file, and Markdown for a job's summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from llmprof.analysis.timing.compare import Comparison
from llmprof.plaintext import one_line

_MARKS = {"failed": "❌ failed", "inconclusive": "❔ inconclusive", "passed": "✅ passed"}


@dataclass(frozen=True)
class GateLine:
    """One gate of one pair."""

    name: str
    a: str
    b: str
    outcome: str
    """``failed``, ``inconclusive`` or ``passed``."""
    line: str


def junit(lines: Sequence[GateLine]) -> str:
    """A test case a gate and pair. JUnit has no third verdict: a gate that cannot tell is an
    ``error``, which no CI takes for a pass."""
    count = {name: sum(item.outcome == name for item in lines) for name in _MARKS}
    suite = Xml.Element(
        "testsuite",
        name="llmprof compare",
        tests=str(len(lines)),
        failures=str(count["failed"]),
        errors=str(count["inconclusive"]),
        skipped="0",
    )
    for item in lines:
        name = one_line(item.name, 200)
        pair = f"{one_line(item.b, 60)} / {one_line(item.a, 60)}"
        case = Xml.SubElement(suite, "testcase", classname=pair, name=name)
        text = one_line(item.line, 500)
        if item.outcome == "passed":
            Xml.SubElement(case, "system-out").text = text
        else:
            kind = "failure" if item.outcome == "failed" else "error"
            Xml.SubElement(case, kind, message=text, type=item.outcome)
    root = Xml.Element("testsuites")
    root.append(suite)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def summary(pairs: Iterable[Comparison], lines: Sequence[GateLine]) -> str:
    """Markdown: a line a pair, a table of gates."""
    out = ["### llmprof compare", ""]
    for pair in pairs:
        out.append(f"* {_cell(pair.verdict)}")
        out += [f"  * {_cell(warning)}" for warning in pair.warnings]
    if lines:
        out += ["", "| gate | pair | result | measured |", "|---|---|---|---|"]
    for item in lines:
        pair_name = f"{_cell(item.b)} / {_cell(item.a)}"
        out.append(
            f"| {_cell(item.name)} | {pair_name} | {_MARKS[item.outcome]} | {_cell(item.line)} |"
        )
    return "\n".join(out) + "\n"


def _cell(text: str) -> str:
    """Labels are the user's, and may be of a file that somebody else made."""
    safe = one_line(text, 500).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|`*_[]":
        safe = safe.replace(mark, f"\\{mark}")
    return safe
