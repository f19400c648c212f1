"""Rows of cells as plain values, the few ways to put them together, and their difference.

A row is a tuple of spans; a span is text and the name of its role (``palette.py`` knows what a
role looks like). No widget here: everything that a frame shows can be tested as text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest
from typing import Final, NamedTuple, TypeVar

from rich.cells import cell_len, chop_cells, set_cell_size

from llmprof.plaintext import one_line, printable

MERGE_GAP = 8
"""Unchanged cells that are cheaper to send again than a cursor move and a colour: ~8 of them."""


class Span(NamedTuple):
    """Text in one role; roles are words apart by spaces, as in ``accent0 strong``."""

    text: str
    role: str = ""


Row = tuple[Span, ...]
_NUMBER: Final = re.compile(r"(?<!\S)[-+−(\[]?\d[\d.,–]*[ ](?=\S)")
"""A number that something follows."""
Cell = tuple[str, str]
Look = TypeVar("Look")
Runs = list[tuple[int, int]]


def clean(text: str) -> str:
    """Untrusted text for one line: no control character, no surrogate, nothing invisible."""
    return _visible(one_line(text, 2000))


def clean_lines(text: str) -> list[str]:
    """Untrusted text of several lines, tabs as spaces."""
    return [_visible(printable(line.expandtabs(4))) for line in text.splitlines()]


def _visible(text: str) -> str:
    if text.isascii():
        return text
    # Zero-width joiners and emoji selectors make terminals disagree about a line's width; lone
    # surrogates (paths that are not UTF-8) cannot be written at all.
    kept = (c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return "".join("?" if unicodedata.category(c) == "Cs" else c for c in kept)


def row(*spans: Span | str) -> Row:
    return tuple(Span(s) if isinstance(s, str) else s for s in spans)


def text_of(line: Row) -> str:
    return "".join(span.text for span in line)


def width_of(line: Row) -> int:
    return sum(cell_len(span.text) for span in line)


def fit_text(text: str, width: int, align: str = "left") -> str:
    """Exactly ``width`` cells; what is cut off ends in an ellipsis."""
    size = cell_len(text)
    if size > width:
        return "" if width < 1 else set_cell_size(text, width - 1) + "…"
    pad = " " * (width - size)
    return pad + text if align == "right" else text + pad


def fit_label(text: str, width: int) -> str:
    """Exactly ``width`` cells; what is cut out of the middle is an ellipsis: the end of an engine's
    label is what tells it from another."""
    if cell_len(text) <= width or width < 5:
        return fit_text(text, width)
    head, tail = text, ""
    room = (width - 1) * 3 // 5
    for character in reversed(text):
        if cell_len(character + tail) > room:
            break
        tail = character + tail
    return fit_text(f"{set_cell_size(head, width - 1 - cell_len(tail))}…{tail}", width)


def fit(line: Row, width: int) -> Row:
    """``line`` cropped or padded to exactly ``width`` cells."""
    out: list[Span] = []
    left = max(0, width)
    for index, span in enumerate(line):
        size = cell_len(span.text)
        more = any(s.text for s in line[index + 1 :])
        if size > left or (size == left and more):
            out.append(Span(fit_text(span.text + ("  " if more else ""), left), span.role))
            return tuple(out)
        out.append(span)
        left -= size
    if left:
        out.append(Span(" " * left))
    return tuple(out)


def spread(left: Row, right: Row, width: int) -> Row:
    """``left`` and ``right`` at the two ends; ``left`` gives way."""
    space = max(0, width - width_of(right))
    return fit((*fit(left, space), *right), width)


def beside(blocks: Sequence[Sequence[Row]], widths: Sequence[int], gap: int = 0) -> list[Row]:
    """Blocks of rows side by side, each padded to its width."""
    out = []
    for lines in zip_longest(*blocks, fillvalue=()):
        spans: list[Span] = []
        for index, (line, width) in enumerate(zip(lines, widths, strict=True)):
            if index and gap:
                spans.append(Span(" " * gap))
            spans.extend(fit(line, width))
        out.append(tuple(spans))
    return out


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells, broken at spaces where there are any.

    A number stays with its unit.
    """
    width = max(2, width)
    lines: list[str] = []
    line = ""
    for word in _NUMBER.sub(lambda found: f"{found[0][:-1]}\0", text).split(" "):
        word = word.replace("\0", " ")
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = chop_cells(word, width) or [""]
        lines.extend(full)
    return [*lines, line]


def wrap_facts(facts: Sequence[str], width: int) -> list[str]:
    """Facts with dots between them, as many on a line as fit."""
    lines: list[str] = []
    for fact in facts:
        if lines and cell_len(lines[-1]) + 3 + cell_len(fact) <= width:
            lines[-1] += f" · {fact}"
        else:
            lines += wrap(fact, width)
    return lines


def rule(title: Row, right: Row, width: int, line: str) -> Row:
    """A section's heading on a horizontal line of ``line`` characters."""
    room = width - width_of(right) - (1 if right else 0)
    head = fit(title, min(width_of(title), max(0, room - 3)))
    fill = max(1, room - width_of(head) - 1)
    tail = (Span(" "), *right) if right else ()
    return fit((*head, Span(" "), Span(line * fill, "track"), *tail), width)


def cells_of(line: Iterable[tuple[str, Look]]) -> list[tuple[str, Look]]:
    """One (character, role) a column; the second column of a wide character is empty."""
    out: list[tuple[str, Look]] = []
    for text, role in line:
        if text.isascii():
            out.extend([(char, role) for char in text])
            continue
        for char in text:
            size = cell_len(char)
            if size == 0 and out:
                out[-1] = (out[-1][0] + char, out[-1][1])
            elif size:
                out.append((char, role))
                out.extend([("", role)] * (size - 1))
    return out


def changed_runs(old: Row, new: Row) -> Runs:
    """Column ranges [start, end) in which two rows differ; near ones are merged.

    Past a third of the row the whole row is one range: cursor moves would cost more.
    """
    before, after = cells_of(old), cells_of(new)
    size = max(len(before), len(after))
    changed = sum(a != b for a, b in zip_longest(before, after))
    return [(0, size)] if changed * 3 > size else runs_of(before, after)


def runs_of(before: Sequence[tuple[str, Look]], after: Sequence[tuple[str, Look]]) -> Runs:
    """Column ranges [start, end) in which two lines of cells differ; near ones are merged."""
    runs: Runs = []
    for x, (a, b) in enumerate(zip_longest(before, after)):
        if a == b:
            continue
        start, end = x, x + 1
        # A wide character is repainted with both its columns.
        for line in (before, after):
            while 0 < start < len(line) and line[start][0] == "":
                start -= 1
            while end < len(line) and line[end][0] == "":
                end += 1
        if runs and start - runs[-1][1] <= MERGE_GAP:
            runs[-1] = (min(start, runs[-1][0]), max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs


def merged(line: Row) -> Row:
    """Neighbours of one role as one span: each span costs a colour change on the wire."""
    return tuple(
        Span("".join(s.text for s in spans), role)
        for role, spans in groupby(line, key=lambda s: s.role)
    )
