"""What every format of the report shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.sweep.curves import Curve, chosen_axis, curves, doubts
from llmprof.sweep.fits import fit_words
from llmprof.sweep.rows import Row
from llmprof.sweep.store import Store


@dataclass(frozen=True)
class Content:
    """Curves, fits and what is wrong with them."""

    title: str
    rows: list[Row]
    axes: tuple[str, ...]
    axis: str
    curves: list[Curve]
    doubts: list[str]
    fits: list[str]
    failed: list[Row]


def content(store: Store, over: str = "") -> Content:
    """Of all points that have ended.

    Raises:
        UsageError: none has, or ``over`` is no axis of the sweep.
    """
    rows = store.rows()
    if not rows:
        raise UsageError(f"{one_line(str(store.folder))}: no point has ended yet")
    axes = store.grid.axes
    axis = chosen_axis(axes, over)
    found = curves(rows, axes, axis)
    failed = [row for row in rows if row["state"] != "done"]
    done = sum(ended.state == "done" for ended in store.ended.values())
    title = f"{done} of {len(store.points)} points"
    if store.grid.repeat > 1:
        title += f", {store.grid.repeat} repeats"
    fixed = [
        f"{name} {Path(values[0]).name if name == 'model' else values[0]}"
        for name, values in store.grid.fields.items()
        if len(values) == 1
    ]
    title = " · ".join([title, *fixed])
    return Content(title, rows, axes, axis, found, doubts(found), fit_words(found, axis), failed)
