"""Kernels of two traces side by side, in plain text."""

from __future__ import annotations

from llmprof.analysis.device.pairing import PairedKernels, Pairing
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

ROWS = 12
NAME = 34
LEAST_SHARE = 0.02
"""Of the kernel time: less is not worth a line."""


def render(pairing: Pairing | Unavailable) -> list[str]:
    """The pairs with the largest change; empty where there are no kernels."""
    if isinstance(pairing, Unavailable) or not pairing.rows:
        return []
    what = "ms a step" if pairing.per_step else "ms in all"
    ratio = f", {pairing.b_ns / pairing.a_ns:.2f} times A's" if pairing.a_ns else ""
    lines = [
        "",
        f"  Kernel time {what}: A {pairing.a_ns / 1e6:.3f}, B {pairing.b_ns / 1e6:.3f}{ratio}",
    ]
    if pairing.why_not:
        lines.append(f"  {one_line(pairing.why_not)}: everything that was traced is compared")
    for side, busy in (("A", pairing.a_elsewhere_ns), ("B", pairing.b_elsewhere_ns)):
        if busy > LEAST_SHARE * max(pairing.a_ns, pairing.b_ns):
            lines.append(
                f"  {side}'s steps hold {busy / 1e6:.3f} ms more of device work that was launched"
                " outside of them"
            )
    lines.append(f"  {what:<24} {'A':>9} {'B':>9} {'change':>9}  kernels")
    lines += [
        f"  {one_line(row.category, 24):<24} {_ms(row.a_ns, row.a_names)}"
        f" {_ms(row.b_ns, row.b_names)} {row.delta_ns / 1e6:+9.3f}  {_kernels(row)}"
        for row in pairing.rows[:ROWS]
    ]
    rest = pairing.rows[ROWS:]
    if rest:
        a, b = sum(r.a_ns for r in rest) / 1e6, sum(r.b_ns for r in rest) / 1e6
        lines.append(f"  {f'{len(rest)} more':<24} {a:9.3f} {b:9.3f} {b - a:+9.3f}")
    lines.append(
        f"  paired by name, else by what the names in a category say; {pairing.paired_share:.0%} of"
        " the time is paired"
    )
    return lines


def _ms(value: float, names: tuple[str, ...]) -> str:
    return f"{value / 1e6:9.3f}" if names else f"{'–':>9}"


def _kernels(row: PairedKernels) -> str:
    if row.how == "name":
        return one_line(f"{row.label} ({row.a_count:.4g}× | {row.b_count:.4g}×)", 70)
    if row.how == "family":
        return f"{row.label}: {_names(row.a_names, row.a_count)} | " + _names(
            row.b_names, row.b_count
        )
    side, count = ("A", row.a_count) if row.how == "only A" else ("B", row.b_count)
    return f"only {side}: {one_line(row.label, NAME)} ({count:.4g}×)"


def _names(names: tuple[str, ...], count: float) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{one_line(names[0], NAME)}{more} ({count:.4g}×)"
