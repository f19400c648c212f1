"""What engines spend on the same purpose, in plain text."""

from __future__ import annotations

from llmprof.analysis.view.roles import RolePair, RoleRow, gb_s, names_text
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

LEAST_MS = 0.002
"""A role that takes less of a step in both is not worth a line."""


def render(pairs: tuple[RolePair, ...] | Unavailable, width: int = 100) -> list[str]:
    """A line a role: ms a step and GB/s of both, and the kernels."""
    if isinstance(pairs, Unavailable) or not pairs:
        return []
    lines = ["", f"  {'ms a step, by role':<18}{'A':>9}{'GB/s':>7}{'B':>9}{'GB/s':>7}{'change':>9}"]
    for pair in pairs:
        if max(row.ms_per_step for row in (pair.a, pair.b) if row) < LEAST_MS:
            continue
        names = " | ".join(names_text(row.names, 1) if row else "–" for row in (pair.a, pair.b))
        lines.append(
            f"  {one_line(pair.role, 17):<18}{cells(pair.a)}{cells(pair.b)}{pair.delta_ms:+9.3f}"
            f"  {one_line(names, max(20, width - 63))}"
        )
    if any(_known(row) for pair in pairs for row in (pair.a, pair.b)):
        lines.append("  ~ modelled: packed bytes of the matrices over the kernels' time")
    return lines


def cells(row: RoleRow | None) -> str:
    """``ms`` and ``GB/s``, 16 columns; ``~`` before what is modelled."""
    if row is None:
        return f"{'–':>9}{'':7}"
    return f"{row.ms_per_step:9.3f}{rate(row):>7}"


def rate(row: RoleRow) -> str:
    """GB/s, ``~`` before what is modelled; empty where it is not known."""
    value, how = gb_s(row)
    if isinstance(value, Unavailable):
        return ""
    return f"{'~' if how == 'modelled' else ''}{value:.0f}"


def _known(row: RoleRow | None) -> bool:
    return row is not None and rate(row).startswith("~")
