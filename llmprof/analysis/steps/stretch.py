"""Stretches of a recording, and the one rule for where a step ends.

A step lasts until the next one begins: a stall between two decode steps is in the first of them.
Before something that is no decode step (a prefill, a change-over, nothing) only the usual gap
behind a step is its own. What is left is a pause, and no step: the program may have waited for its
next request.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmprof.analysis.steps.events import Flags
from llmprof.records import RoundRecord
from llmprof.records.steps import BETWEEN, StepLabel
from llmprof.runfile.trace.rows import Ints

PAUSE = 10
"""A gap of so many median steps is a pause, also between two decode steps."""
REST = 0.25
"""Of a median step: what is left behind the usual gap, up to here, stays with the step. It would
be slow (``step_kinds.SLOW``) with more."""


@dataclass(frozen=True)
class Stretch:
    """One step, or what lies between two."""

    start_ns: int
    end_ns: int
    label: StepLabel


@dataclass(frozen=True)
class Ends:
    """Steps of one recording as they mostly are."""

    typical_ns: float
    """From the start of a step to the start of the next one; at least 1."""
    usual_ns: int
    """From the end of its work to there."""

    @classmethod
    def of(
        cls, start_ns: Ints, done_ns: Ints, next_ns: Ints, followed: Flags, instead: Flags
    ) -> Ends:
        """Medians over the steps that another one follows.

        Args:
            start_ns: of every stretch, in order.
            done_ns: when its own work ends.
            next_ns: when what follows begins.
            followed: decode steps that a decode step follows.
            instead: whose gaps are the usual ones where no decode step follows another.
        """
        gaps = np.maximum(0, next_ns - done_ns)
        lead = followed if followed.any() else instead
        usual = round(float(np.median(gaps[lead]))) if lead.any() else 0
        if followed.any():
            length = float(np.median((next_ns - start_ns)[followed]))
        elif len(start_ns):
            length = float(np.median(done_ns - start_ns)) + usual
        else:
            length = 1.0
        return cls(max(1.0, length), usual)

    def pause(self, gap_ns: int) -> bool:
        """Is a gap too long to be one of a step, whatever follows?"""
        return gap_ns > PAUSE * self.typical_ns

    def parted(self, gap_ns: int, plain: bool) -> bool:
        """Does a step end before what follows it begins?

        Args:
            gap_ns: from the end of its own work to there.
            plain: a decode step follows.
        """
        if plain:
            return self.pause(gap_ns)
        return gap_ns > self.usual_ns + REST * self.typical_ns


def joined(groups: Sequence[tuple[Stretch, ...]]) -> tuple[Stretch, ...]:
    """Groups of stretches, in order, with the pauses between them."""
    made: list[Stretch] = []
    for part in groups:
        if made and part[0].start_ns > made[-1].end_ns:
            made.append(Stretch(made[-1].end_ns, part[0].start_ns, StepLabel("pause")))
        made += part
    return tuple(made)


def unrecorded(
    stretches: Sequence[Stretch], closed: Sequence[tuple[int, int]]
) -> tuple[tuple[Stretch, ...], int]:
    """No steps where the recording stood still: what lies in such a time for the most part, or
    holds the most of it, is something else. And how many that were."""
    made, gone = list(stretches), 0
    starts = [stretch.start_ns for stretch in stretches]
    for begin, end in closed:
        for n in range(max(0, bisect_right(starts, begin) - 1), bisect_left(starts, end)):
            one = made[n]
            length = min(end - begin, one.end_ns - one.start_ns)
            inside = min(end, one.end_ns) - max(begin, one.start_ns)
            if one.label.phase not in BETWEEN and 2 * inside > length:
                made[n] = replace(one, label=replace(one.label, phase="other"))
                gone += 1
    return tuple(made), gone


def round_of(
    stretches: Sequence[Stretch], whole: RoundRecord, number: int, index: int, tid: int
) -> RoundRecord:
    """A round of stretches that follow one another.

    Args:
        whole: the round of the same process without steps.
    """
    stamps: array[int] = array("q", [stretch.start_ns for stretch in stretches])
    stamps.append(stretches[-1].end_ns)
    return RoundRecord(
        round_id=number,
        engine_id=whole.engine_id,
        pass_name="traced",
        index=index,
        pid=whole.pid,
        tid=tid,
        start_ns=stamps[0],
        prefill_start_ns=stamps[0],
        stamps_ns=stamps,
        end_ns=stamps[-1],
        complete=True,
        steps_from="marked",
        labels=tuple(stretch.label for stretch in stretches),
    )


def until(made: RoundRecord, end_ns: int) -> RoundRecord:
    """The same round with a last step that ends later."""
    stamps = made.stamps_ns[:-1]
    stamps.append(max(made.end_ns, end_ns))
    return replace(made, stamps_ns=stamps, end_ns=stamps[-1])


def pause_words(stretches: Sequence[Stretch]) -> tuple[str, ...]:
    """One line about the pauses, if there are any."""
    waits = [s.end_ns - s.start_ns for s in stretches if s.label.phase == "pause"]
    if not waits:
        return ()
    count = f"{len(waits):,} pause{'s' * (len(waits) > 1)} between steps"
    return (f"{count}, {sum(waits) / 1e6:,.3f} ms in all",)
