"""Idle time of one device during which another device of the same engine worked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from llmprof.analysis.device.sweep import Timeline
from llmprof.runfile.trace.rows import Ints


def peer_ns(others: Sequence[Timeline], start: Ints, end: Ints) -> Ints:
    """ns of each stretch in which at least one of the other devices is busy."""
    if not others:
        return np.zeros(len(start), np.int64)
    begins = np.concatenate([timeline.start_ns for timeline in others])
    ends = np.concatenate([timeline.end_ns for timeline in others])
    order = np.argsort(begins, kind="stable")
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    begins[1:] = np.maximum(begins[1:], ends[:-1])
    there = ends > begins
    begins, ends = begins[there], ends[there]
    if not len(begins):
        return np.zeros(len(start), np.int64)
    before = np.concatenate([[0], np.cumsum(ends - begins)])

    def upto(times: Ints) -> Ints:
        begun = np.searchsorted(begins, times, "right")
        over = np.maximum(0, ends[np.maximum(begun, 1) - 1] - times)
        found: Ints = before[begun] - np.where(begun > 0, over, 0)
        return found

    return upto(end) - upto(start)


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
