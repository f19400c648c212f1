"""Findings in plain text."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from llmprof.analysis.findings.ranked import Findings
from llmprof.analysis.findings.subject import Finding
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

NONE = "nothing found that would win 2 % of a step"


def render(found: Findings, width: int = 100) -> Iterator[str]:
    """Verdicts, where a step goes, findings by what they would win."""
    for verdict in found.verdicts:
        yield one_line(verdict)
    for words in found.steps:
        yield from _wrapped(f"{one_line(words.label, 30)}: {one_line(words.words)}", width, "  ")
    yield ""
    if not found.found:
        yield NONE
    for rank, item in enumerate(found.found, 1):
        yield from _finding(rank, item, width)
    if found.dropped:
        yield f"{found.dropped} smaller one{'s' * (found.dropped > 1)} left out"
    for engine, why in found.missing:
        yield from _wrapped(f"{one_line(engine, 30)}: {one_line(why)}", width, "! ")


def amount(item: Finding) -> str:
    """``1.26 ms/token``, or that there is no number."""
    ms = item.ms_per_token
    return "n/a" if isinstance(ms, Unavailable) else f"{ms:.2f} ms/token"


def _finding(rank: int, item: Finding, width: int) -> Iterator[str]:
    share = "" if isinstance(item.share, Unavailable) else f" ({item.share:.0%})"
    yield (
        f"{rank:>2}. {amount(item)}{share}  {one_line(item.engine, 30)}: {item.cause}"
        f" [{item.confidence}]"
    )
    yield from _wrapped(one_line(item.says), width, "    ")
    if item.how:
        yield from _wrapped(f"won: {one_line(item.how)}", width, "      ")
    if isinstance(item.ms_per_token, Unavailable):
        yield from _wrapped(f"no number: {one_line(item.ms_per_token.reason)}", width, "      ")
    for text in item.evidence:
        yield from _wrapped(one_line(text), width, "      ")
    yield from _wrapped(f"{item.confidence}: {one_line(item.why)}", width, "      ")
    # A command stays on one line: it is there to be copied.
    yield f"      next: {one_line(item.next, 400)}"


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ")
