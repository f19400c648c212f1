"""When a run ends: after so many rounds, or by precision and time. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

PRECISION = 0.01
MAX_S = 60.0
EndedBy = Literal["", "precision", "time", "rounds"]


@dataclass(frozen=True)
class Goal:
    """Kept in the run as ``workload["goal"]``."""

    rounds: int | None = None
    """Exactly so many; ``None``: precision and time end the run."""
    precision: float = PRECISION
    """Half-width of the interval of every ratio (of the rate, where one engine runs alone), 0–1."""
    max_s: float = MAX_S
    """Warm-up, timing pass and traced pass together; loading is not in it."""
    processes: int | None = 1
    """Process pairs of the timing pass; ``None``: found out after the first load and warm-up."""
    batch_rounds: int = 1
    """Rounds whose mean log ratio is one value; fixed after warm-up."""
    ended_by: EndedBy = ""
    """Of the timing pass; empty where something else ended it."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(workload: dict[str, Any]) -> Goal | None:
        """Of a run's ``RunInfo.workload``; ``None`` in runs that had a number of rounds only, and
        in those that llmprof did not drive."""
        kept = workload.get("goal")
        if not isinstance(kept, dict):
            return None
        known = {k: kept[k] for k in Goal.__dataclass_fields__ if k in kept}
        return Goal(**known)


def share_of(text: str) -> float | None:
    """``1%`` as 0.01; ``None``: no per cent between 0 and 100."""
    match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*", text)
    share = float(match[1]) / 100 if match else 0.0
    return share if 0 < share < 1 else None


def seconds_of(text: str) -> float | None:
    """``90``, ``90s``, ``1.5m``, ``1h`` in seconds; ``None``: no time above 0."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|min|h)?\s*", text)
    unit = {"m": 60.0, "min": 60.0, "h": 3600.0}
    seconds = float(match[1]) * unit.get(match[2] or "s", 1.0) if match else 0.0
    return seconds if seconds > 0 else None


SHORTEST = 4
"""Decode steps of a round, at least."""
SHORT = 16
"""Decode steps of a round, at least, where it is shortened only to have more of them."""
FINE = 4
"""A round as long as it may be is cut into so many, for more of them: many short rounds beat few
long ones, since what disturbs a machine lasts longer than a pair of rounds."""


def fitting_length(
    seconds: Callable[[int], float], decode_len: int, most_s: float, shortest: int = SHORTEST
) -> int:
    """Decode steps of a round that takes no longer than ``most_s``.

    ``decode_len``, or else a power of two: runs of one machine that is now slower and now faster
    then often have the same length, and only those can be compared.

    Args:
        seconds: what a round of so many steps takes.
    """
    length, power = decode_len, 1 << max(0, (decode_len - 1).bit_length() - 1)
    while length > shortest and seconds(length) > most_s:
        length, power = max(shortest, power), power // 2
    return length


def round_length(
    seconds: Callable[[int], float], decode_len: int, most_s: float, fine_s: float
) -> int:
    """Decode steps of a round that takes ``most_s`` at most, and ``fine_s`` where ``SHORT`` steps
    fit into that."""
    length = fitting_length(seconds, decode_len, fine_s, min(SHORT, decode_len))
    return fitting_length(seconds, length, most_s)
