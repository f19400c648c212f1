"""A group of which one rank alone was recorded: the wait is estimated, and says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmprof.analysis.ranks.lines import QUICKEST_PERCENT, collective_line, occupied, payload
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.results import RankLine, RanksReport
from llmprof.records import Unavailable


def alone(
    member: Member, title: str, bytes_of: Mapping[str, int], world: int
) -> RanksReport | Unavailable:
    """One rank's trace: the shortest of each sort are transfer, what is longer is waiting."""
    own = member.collectives
    if not len(own):
        return Unavailable(member.no_collective)
    bounds = member.bounds_ns
    every = len(bounds) - 1
    seen = np.ones(every, bool) if member.counted is None else member.counted
    steps = int(np.count_nonzero(seen))
    if not steps:
        return Unavailable("no rank has decode steps")
    step = np.searchsorted(bounds, own.end_ns, "left")
    inside = np.concatenate([[False], seen, [False]])[step]
    duration = np.maximum(own.end_ns - own.start_ns, 0)
    transfer = np.zeros_like(duration)
    lines = []
    there = tuple(key for n, key in enumerate(own.keys) if (own.key[inside] == n).any())
    for number, key in enumerate(own.keys):
        mine = own.key == number
        shortest = int(np.percentile(duration[mine], QUICKEST_PERCENT))
        transfer[mine] = np.minimum(duration[mine], shortest)
        counted = mine & inside
        count = int(np.count_nonzero(counted))
        if not count:
            continue
        wait = (duration - transfer)[counted]
        size = payload(key, there, bytes_of)
        lines.append(
            collective_line(
                key,
                count,
                steps,
                float(shortest),
                float(shortest),
                float(wait.mean()),
                float(wait.max()),
                size,
                world,
            )
        )
    wait_ns = duration - transfer
    moves = own.start_ns + wait_ns
    found = occupied(member, bounds, seen, (own.start_ns, moves), (moves, moves + transfer))
    line = RankLine(
        rank=member.rank,
        name=member.name,
        pid=member.pid,
        device=member.device,
        wait_ms=float(wait_ns[inside].sum()) / steps / 1e6,
        transfer_ms=float(transfer[inside].sum()) / steps / 1e6,
        **vars(found),
        late_ms=0.0,
        late_steps=0,
        unmatched=len(own),
        steps=every,
    )
    waited = wait_ns > 0
    return RanksReport(
        title=title,
        world=max(world, 1),
        ranks=(line,),
        steps=steps,
        step_ms=float(np.diff(bounds)[seen].mean()) / 1e6,
        late_ns=np.zeros((1, every), np.int64),
        critical=(-1,) * every,
        verdict="unknown",
        words=(
            f"one rank alone was recorded: it waits about {line.wait_ms:.3f} ms a step for the"
            f" others, if its shortest collectives (the {QUICKEST_PERCENT} % quantile) are pure"
            " transfer"
        ),
        reason=None,
        lateness=None,
        collectives=tuple(sorted(lines, key=lambda x: -x.count * (x.transfer_us + x.wait_us))),
        clocks=(),
        clock_words="one rank: no other clock",
        notes=(f"rank {member.rank} of {world} was recorded",) if world > 1 else (),
        provenance="modelled",
        members=(member,),
        matched=None,
        matched_rows=(),
        wait_spans=((own.start_ns[waited], (own.start_ns + wait_ns)[waited]),),
    )
