"""What every format of the report shows."""

from __future__ import annotations

from dataclasses import dataclass

from llmprof.errors import UsageError
from llmprof.plaintext import one_line
from llmprof.sweep.curves import Curve, chosen_axis, curves, doubts
from llmprof.sweep.fields import short
from llmprof.sweep.fits import fit_words
from llmprof.sweep.report.gaps import CATEGORIES, Failed, failed_points, why_missing
from llmprof.sweep.rows import Row
from llmprof.sweep.store import Store

COLUMNS = (
    "step_ms",
    "tok_s",
    "ttft_ms",
    "modelled_gb_s",
    "measured_gb_s",
    "idle_ms",
    "j_per_token",
)
"""Metrics of the tables, where some place has them."""


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
    failed: list[Failed]
    missing: list[str]
    """What is n/a, where and why, in sentences."""

    @property
    def columns(self) -> list[str]:
        return [c for c in COLUMNS if any(p.value(c) is not None for u in self.curves
                                          for p in u.places)]  # fmt: skip


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
    failed = failed_points(rows, axes, store.grid.repeat)
    done = sum(ended.state == "done" for ended in store.ended.values())
    title = f"{done} of {len(store.points)} points"
    if store.grid.repeat > 1:
        title += f", {store.grid.repeat} repeats"
    fixed = [
        f"{name} {short(name, values[0])}"
        for name, values in store.grid.fields.items()
        if len(values) == 1
    ]
    title = " · ".join([title, *fixed])
    missing = why_missing(found, [*COLUMNS, CATEGORIES])
    fits = fit_words(found, axis)
    return Content(title, rows, axes, axis, found, doubts(found), fits, failed, missing)
