"""Rows of a sweep to curves: one line an engine, on one kind of hardware, over one axis.

Repeats of a point are one place of a curve: the median of their values, between the lowest low and
the highest high of their intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from llmprof.errors import UsageError
from llmprof.sweep.fields import FIELDS, canonical, short
from llmprof.sweep.rows import Row, hardware

METRICS = {
    "step_ms": "step, ms",
    "tok_s": "tok/s, all sequences",
    "ttft_ms": "TTFT, ms",
    "itl_p99_ms": "ITL p99, ms",
    "modelled_gb_s": "GB/s, modelled",
    "measured_gb_s": "GB/s, measured",
    "idle_ms": "idle a step, ms, as traced",
    "j_per_token": "J a token",
}
"""Column → heading, in the order in which they are offered."""
IDLE = "idle"
TRACED_SLOW = 1.3
"""A traced step that took so many times a timed one is said: CUDA graphs of 420 kernels take up to
1.23 times as long on an H100."""
MOST_SHOWN = 8
"""Places that a sentence names."""


@dataclass(frozen=True)
class Place:
    """One x of a curve."""

    x: float
    """The value of the axis; its index where the axis is text."""
    shown: str
    rows: tuple[Row, ...]
    """Of the repeats that have ended well."""

    def value(self, metric: str) -> float | None:
        """Median over the repeats."""
        found = [row[metric] for row in self.rows if row.get(metric) is not None]
        return median(found) if found else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Lowest low and highest high; ``None`` where no repeat has an interval."""
        lows = [r[f"{metric}_low"] for r in self.rows if r.get(f"{metric}_low") is not None]
        highs = [r[f"{metric}_high"] for r in self.rows if r.get(f"{metric}_high") is not None]
        return (min(lows), max(highs)) if lows and highs else None

    def categories(self) -> dict[str, float]:
        """Category → ms a step as traced, idle last: the mean over the repeats that have it."""
        traced = [row for row in self.rows if row.get("categories")]
        found: dict[str, float] = {}
        for row in traced:
            for name, ms in row["categories"].items():
                found[name] = found.get(name, 0.0) + ms / len(traced)
        idle = [row["idle_ms"] for row in traced if row.get("idle_ms") is not None]
        if traced and len(idle) == len(traced):
            found[IDLE] = sum(idle) / len(idle)
        return found


@dataclass(frozen=True)
class Curve:
    """One engine on one kind of hardware, everything but the axis held equal."""

    engine: str
    hardware: str
    held: Mapping[str, str]
    """The other fields that vary in the sweep, and their values here."""
    places: tuple[Place, ...]
    drivers: tuple[str, ...] = field(default=())
    """Of its points; more than one is a doubt."""

    @property
    def label(self) -> str:
        """Of the engine and what is held."""
        parts = [f"{name} {short(name, value)}" for name, value in self.held.items()]
        return " · ".join([self.engine, *parts])


def chosen_axis(axes: Sequence[str], wanted: str) -> str:
    """The axis of the curves: the one asked for, context, batch, or the first.

    Raises:
        UsageError: the field does not vary in this sweep.
    """
    if wanted:
        name = canonical(wanted)
        if name not in axes:
            there = ", ".join(axes) or "none"
            raise UsageError(f"--over {wanted}: it does not vary in this sweep; axes: {there}")
        return name
    for usual in ("context", "batch"):
        if usual in axes:
            return usual
    return axes[0] if axes else "context"


def curves(rows: Iterable[Row], axes: Sequence[str], axis: str) -> list[Curve]:
    """All curves over ``axis``, engine by engine as they come, each by what is held; only rows
    that ended well.

    Rows of different hardware (GPU, or CPU without one) are different curves.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    held_of: dict[tuple[object, ...], dict[str, str]] = {}
    order: dict[str, int] = {}
    for row in rows:
        if row.get("state") != "done":
            continue
        fields = row["fields"]
        held = {name: fields[name] for name in axes if name != axis and name in fields}
        key = (row["engine"], hardware(row), *held.items())
        groups.setdefault(key, []).append(row)
        held_of[key] = held
        order.setdefault(fields.get(axis, ""), len(order))
    found = []
    for key, members in groups.items():
        by_value: dict[str, list[Row]] = {}
        for row in members:
            by_value.setdefault(row["fields"].get(axis, ""), []).append(row)
        places = [
            Place(_x(axis, value, order), short(axis, value), tuple(group))
            for value, group in by_value.items()
        ]
        drivers = sorted({str(row.get("driver") or "") for row in members} - {""})
        places.sort(key=lambda place: place.x)
        engine, where = str(key[0]), str(key[1])
        found.append(Curve(engine, where, held_of[key], tuple(places), tuple(drivers)))
    engines = list(dict.fromkeys((curve.engine, curve.hardware) for curve in found))
    seen: dict[tuple[str, str], int] = {}
    for curve in found:
        for item in curve.held.items():
            seen.setdefault(item, len(seen))

    def place_of(curve: Curve) -> tuple[float, ...]:
        held = (_rank(name, value, seen) for name, value in curve.held.items())
        return engines.index((curve.engine, curve.hardware)), *held

    return sorted(found, key=place_of)


def doubts(found: Sequence[Curve]) -> list[str]:
    """What keeps curves of one sweep from being compared."""
    kinds = list(dict.fromkeys(curve.hardware for curve in found))
    lines = []
    if len(kinds) > 1:
        lines.append(
            f"points ran on {len(kinds)} kinds of hardware ({', '.join(kinds)}): each has curves"
            " of its own"
        )
    for curve in found:
        if len(curve.drivers) > 1:
            lines.append(f"{curve.label}: its points had drivers {', '.join(curve.drivers)}")
        clocks = [
            row["sm_clock_mhz"] for p in curve.places for row in p.rows if row.get("sm_clock_mhz")
        ]
        if clocks and max(clocks) > 1.02 * min(clocks):
            lines.append(
                f"{curve.label}: the SM clock was {min(clocks):.0f} to {max(clocks):.0f} MHz"
                " along the curve"
            )
        lines += [f"{curve.label}: {text}" for text in (*_held_down(curve), *_slow_traces(curve))]
    return lines


def _slow_traces(curve: Curve) -> list[str]:
    slow = [
        f"{place.shown} ({ratio:.2f}×)"
        for place in curve.places
        if (ratio := place.value("slowdown")) is not None and ratio > TRACED_SLOW
    ]
    if not slow:
        return []
    return [f"traced steps took much longer than timed ones at {_some(slow)}: idle time there may"
            " be of the tracing or of a busy host"]  # fmt: skip


def _some(shown: list[str]) -> str:
    rest = len(shown) - MOST_SHOWN
    return ", ".join([*shown[:MOST_SHOWN], f"and {rest} more places"] if rest > 0 else shown)


def _held_down(curve: Curve) -> list[str]:
    """What held its clocks down, where, in what share of the samples (of repeats: the last)."""
    found: dict[str, dict[str, str]] = {}
    for place in curve.places:
        for row in place.rows:
            for part in filter(None, str(row.get("throttle") or "").split(", ")):
                reason, _, share = part.rpartition(" ")
                found.setdefault(reason or part, {})[place.shown] = share if reason else "?"
    lines = []
    for reason, places in found.items():
        shown = _some([f"{place} ({share})" for place, share in places.items()])
        lines.append(f"{reason} held the clocks down at {shown} of the samples")
    return lines


def _x(axis: str, value: str, order: Mapping[str, int]) -> float:
    known = FIELDS.get(axis)
    if known is not None and known.kind != "text" and value.isdecimal():
        return float(value)
    return float(order[value])


def _rank(name: str, value: str, seen: Mapping[tuple[str, str], int]) -> float:
    """Where a held value stands: by its number, or else by its first appearance."""
    known = FIELDS.get(name)
    by_number = known is not None and known.kind != "text" and value.isdecimal()
    return float(value) if by_number else float(seen[name, value])
