"""Taking time from some causes in favour of another, exact to the ns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name", bound=str)


def moved(parts: Mapping[Name, int], waits: Sequence[Name], ns: int) -> dict[Name, int]:
    """``parts`` with up to ``ns`` taken from those named in ``waits``, in proportion.

    Whole ns; the sum of the result and of what was taken is the sum of ``parts``.
    """
    left = {name: parts[name] for name in waits if parts.get(name)}
    movable = sum(left.values())
    taken = min(ns, movable)
    if taken <= 0:
        return dict(parts)
    kept = movable - taken
    split = {name: divmod(kept * part, movable) for name, part in left.items()}
    missing = kept - sum(whole for whole, _ in split.values())
    ranked = sorted(split, key=lambda name: -split[name][1])[:missing]
    found = {**parts, **{name: whole + (name in ranked) for name, (whole, _) in split.items()}}
    return {name: part for name, part in found.items() if part or name not in left}
