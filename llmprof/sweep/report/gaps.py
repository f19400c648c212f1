"""What of a sweep is not there, and why: points that did not run, values that no place has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmprof.sweep.curves import METRICS, MOST_SHOWN, Curve
from llmprof.sweep.fields import short
from llmprof.sweep.rows import Row

CATEGORIES = "categories"
_UNSAID = "no reason is kept"


@dataclass(frozen=True)
class Failed:
    """One point, or some of its engines."""

    point: str
    """What tells it from the other points."""
    engines: str
    """Empty: all of the point alike."""
    state: str
    reason: str

    @property
    def words(self) -> str:
        who = f"{self.point}: {self.engines}" if self.engines else self.point
        return f"{who}: {self.state}: {self.reason or _UNSAID}"


def failed_points(rows: Iterable[Row], axes: Sequence[str], repeats: int) -> list[Failed]:
    """Those that did not end well; what all engines of a point say is said once."""
    by_point: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (*row["fields"].items(), row.get("repeat"))
        by_point.setdefault(key, []).append(row)
    found = []
    for members in by_point.values():
        by_words: dict[tuple[str, str], list[Row]] = {}
        for row in members:
            if row["state"] != "done":
                words = str(row["state"]), str(row.get("reason") or "")
                by_words.setdefault(words, []).append(row)
        for (state, reason), group in by_words.items():
            engines = "" if len(group) == len(members) else ", ".join(r["engine"] for r in group)
            found.append(Failed(_point(group[0], axes, repeats), engines, state, reason))
    return found


def _point(row: Row, axes: Sequence[str], repeats: int) -> str:
    fields: Mapping[str, str] = row["fields"]
    parts = [f"{name} {short(name, fields[name])}" for name in axes if name in fields]
    if repeats > 1:
        parts.append(f"repeat {(row.get('repeat') or 0) + 1}")
    return " · ".join(parts) or "the point"


def why_missing(found: Sequence[Curve], metrics: Sequence[str]) -> list[str]:
    """One sentence a reason: which values of the report are n/a, at how many places, where.

    Args:
        metrics: columns that the report shows, and ``CATEGORIES``.
    """
    total = sum(len(curve.places) for curve in found)
    where: dict[tuple[str, str], dict[str, list[str]]] = {}
    for curve in found:
        for place in curve.places:
            for what, reason in _missing(place.rows, metrics).items():
                at = where.setdefault((reason, what), {})
                at.setdefault(curve.label, []).append(place.shown)
    # Values that are missing for one reason at the same places share a sentence.
    whats: dict[tuple[str, str], list[str]] = {}
    for (reason, what), at in where.items():
        count = sum(len(places) for places in at.values())
        if count == total:
            words = "at every place"
        elif count > MOST_SHOWN:
            words = f"at {count} of {total} places"
        else:
            words = "at " + "; ".join(f"{label} {', '.join(p)}" for label, p in at.items())
        whats.setdefault((reason, words), []).append(what)
    return [f"{'; '.join(what)}: n/a {words}: {reason}" for (reason, words), what in whats.items()]


def _missing(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, str]:
    """Of one place: what no repeat has → the reason."""
    found = {}
    for metric in metrics:
        if metric == CATEGORIES:
            if not any(row.get(CATEGORIES) for row in rows):
                found[CATEGORIES] = _reason(rows, CATEGORIES)
            continue
        name = METRICS[metric]
        if all(row.get(metric) is None for row in rows):
            found[name] = _reason(rows, metric)
        elif f"{metric}_low" in rows[0] and all(row.get(f"{metric}_low") is None for row in rows):
            found[f"interval of {name}"] = _reason(rows, f"{metric}_low")
    return found


def _reason(rows: Sequence[Row], name: str) -> str:
    reasons = (row.get("reasons") or {} for row in rows)
    return next((r[name] for r in reasons if r.get(name)), _UNSAID)
