"""The host's row of a lane: the kind of host time and the function that take most of a cell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmprof.analysis.timeline.host import HostLane
from llmprof.tui.drawing.cells import Row, Span, clean, fit_text, row
from llmprof.tui.drawing.marks import HOST_LETTERS, host_role
from llmprof.tui.timeline.rows import GUTTER, NAME_CELLS, Cell, Cells, spans, write


def host(cells: Cells, lane: HostLane, legend: dict[str, int]) -> Row:
    """Adds what is in view to ``legend``: kind → ns.

    Blank: no sample was taken near. Cells next to each other with the same function carry its name
    where it has room.
    """
    line: list[Cell] = [(" ", "")] * cells.width
    spent = np.stack([curve.between(cells.times) for curve in lane.kinds.values()])
    kinds = [*lane.kinds]
    for kind, total in zip(kinds, spent.sum(axis=1).tolist(), strict=True):
        if total:
            legend[kind] = legend.get(kind, 0) + total
    known = spent.sum(axis=0)
    largest = np.argmax(spent, axis=0)
    for x in np.flatnonzero(known > 0).tolist():
        kind = kinds[int(largest[x])]
        line[x] = (HOST_LETTERS[kind], host_role(kind))
    _names(line, cells, lane, known > 0)
    return row(Span("host".ljust(GUTTER), "dim"), *spans(line))


def _names(line: list[Cell], cells: Cells, lane: HostLane, known: np.ndarray) -> None:
    keys = [*lane.frames]
    spent = np.stack([curve.between(cells.times) for curve in lane.frames.values()])
    largest = np.where(known & (spent.max(axis=0) > 0), np.argmax(spent, axis=0), -1)
    borders = np.flatnonzero(np.diff(largest, prepend=-2, append=-2))
    for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        if largest[a] < 0 or b - a < NAME_CELLS:
            continue
        kind, name = keys[int(largest[a])]
        if any(line[x][0] != HOST_LETTERS[kind] for x in range(a, b)):
            continue  # another kind takes most of a cell: its letter stays
        short = _short(clean(name), b - a - 3)
        text = f"{HOST_LETTERS[kind]} {short}"
        # The last letter stays as the end of the run where a blank stands before it.
        width = b - a - 1 if len(text) < b - a - 1 else b - a
        write(line, a, fit_text(f"{fit_text(text, b - a - 1)} ", width), host_role(kind))


def _short(name: str, room: int) -> str:
    """``Llama.forward (model.py)``, ``Llama.forward`` or ``forward``: the longest that fits."""
    function = name.rpartition(" (")[0] or name
    return next((n for n in (name, function) if len(n) <= room), function.rpartition(".")[2])


def host_legend(totals: Mapping[str, int]) -> list[tuple[str, str]]:
    """(text, role) of the kinds in view, by their time."""
    ranked = sorted(totals, key=lambda kind: -totals[kind])
    return [(f"{HOST_LETTERS[kind]} {kind}", host_role(kind)) for kind in ranked]
