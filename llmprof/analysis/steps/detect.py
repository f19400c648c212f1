"""Decode steps from the device work alone, where no range says which they are.

``detect`` is told nothing but kernels, copies and sets in order. It gives steps with their
evidence, or none with the reason and what else could have been meant: a guess is always told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np

from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.steps.events import WHOLE_GRAPH, Events, Flags
from llmprof.analysis.steps.levels import LEAST_REPEATS, MANY, Level
from llmprof.analysis.steps.search import Cycles, Pass, search
from llmprof.plaintext import one_line
from llmprof.runfile.trace.rows import Ints

HEAVY = 0.15
"""A stream with this share of the rows and of the work may decode on its own."""
APART = 1.1
"""Streams are taken apart where each explains itself so much better than all together."""
ALONE = 0.8
"""So well at least, where every one of them chooses or sends tokens."""
TIED = 0.98
"""A level with this share of the score of the chosen one is another reading."""
ALIKE = 0.85
"""Share of equal work that makes a rare cycle a step like the usual ones."""
_BACKWARD = re.compile(r"backward|_bwd|wgrad|dgrad|multi_tensor_apply|adamw?_|fused_adam", re.I)
UNLIKE = 0.5
"""Work with less in common is of another model."""
WAITED = 0.8
"""Of the cycles of one sort that come after a pause, so many at least begin requests."""
SAMPLED = "sampling each"
_TAGS = ("copy to the host", "sampling kernel", "embedding kernel", "copy to the device")


@dataclass(frozen=True)
class Evidence:
    """What detected steps rest on."""

    period: int
    """Kernels, copies and sets of a decode step, median."""
    repeats: int
    """Decode steps."""
    coverage: float
    """Share of the time from the first to the last work that lies in cycles, 0–1."""
    anchor: str
    """What comes once a step, in words. Untrusted names in it are printable."""
    cut: str
    """Where one step ends and the next begins."""
    signs: tuple[str, ...]
    """What speaks for steps rather than layers or other cycles."""


@dataclass(frozen=True, eq=False)
class Detection:
    """Cycles in order of their begin; none where ``reason`` says why.

    Rows are those of the events. Cycles of one stream never overlap; where several streams decode
    on their own (``streams``) cycles of different streams do.
    """

    begin: Ints
    end: Ints
    """One behind the last row."""
    decode: Flags
    """Like most cycles; the others are prefill or something else."""
    stream: Ints
    """The stream that a cycle is of; -1: all."""
    evidence: Evidence | None
    reason: str
    candidates: tuple[str, ...] = ()
    """What else repeats, in words."""
    streams: tuple[int, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.begin)


def detect(events: Events) -> Detection:
    """The steps of one process's device work."""
    if not len(events):
        return _refused("there is no device work", None, events)
    whole = search(events)
    parts = _by_stream(events)
    if len(parts) > 1:
        least = min(c.score for _, _, c in parts)
        if least > APART * whole.score:
            return _joined(events, parts)
        # Two that step at one pace look like one: but each has its own tokens.
        if least > ALONE * whole.score and all(c.marked for _, _, c in parts):
            return _joined(events, parts)
    return _verdict(events, whole)


def step_of_rows(found: Detection, rows: int) -> Ints:
    """The cycle of every row, -1 outside; with several streams, of the first one's cycles."""
    step = np.full(rows, -1, np.int64)
    if not len(found):
        return step
    for i in np.flatnonzero(found.stream == found.stream[0]).tolist():
        step[found.begin[i] : found.end[i]] = i
    return step


def _verdict(events: Events, cycles: Cycles) -> Detection:
    if not len(cycles):
        return _refused(f"nothing in {len(events):,} kernels and copies repeats", cycles, events)
    found = _signed(events, cycles)
    if found is None:
        length = round(float(np.median(cycles.end - cycles.begin)))
        return _refused(
            f"{length} kernels and copies repeat {len(cycles)} times, but nothing says that it is"
            " a step: no copy to the host, no sampling, no graph launch a time; it may be a layer",
            cycles,
            events,
        )
    cycles, decode, signs = found
    count = int(np.count_nonzero(decode))
    if count < LEAST_REPEATS:
        what = f"{count} step{'s' * (count != 1)} alike, {LEAST_REPEATS} are needed"
        return _refused(what, cycles, events)
    if _training(events, cycles, decode):
        what = f"{len(cycles)} cycles are training iterations, by the names of their kernels"
        return _refused(what, cycles, events)
    if (why := _ambiguous(cycles)) is not None:
        return _refused(why, cycles, events)
    evidence = _evidence(events, cycles, decode, signs)
    everywhere = np.full(len(cycles), -1, np.int64)
    return Detection(
        cycles.begin, cycles.end, decode, everywhere, evidence, "", _candidates(cycles)
    )


def _signed(events: Events, cycles: Cycles) -> tuple[Cycles, Flags, list[tuple[str, ...]]] | None:
    """The cycles of passes that something says to be steps, which are decode, what says so."""
    decode = _alike(events, cycles)
    signs = [_signs(events, cycles, p, n, decode) for n, p in enumerate(cycles.passes)]
    kept = [n for n, said in enumerate(signs) if said]
    if not kept:
        return None
    decode &= ~_of_another_kind(events, cycles, decode)
    decode, cycles = decode[np.isin(cycles.owner, kept)], cycles.of(kept)
    decode &= ~_begins_requests(events, cycles, decode)
    decode &= ~_alone(events, cycles, decode)
    return cycles, decode, [signs[n] for n in kept]


def _of_another_kind(events: Events, cycles: Cycles, decode: Flags) -> Flags:
    """Cycles in which no token is chosen, of other kernels than those in which one is: answers of
    an embedding model go to the host too."""
    none = np.zeros(len(cycles), bool)
    seen = np.concatenate([[0], np.cumsum(events.sampling)])
    chosen = seen[cycles.end] > seen[cycles.begin]
    doubtful = np.flatnonzero(decode & ~chosen)
    usual = np.flatnonzero(decode & chosen)
    # A graph that was traced as a whole shows no sampling.
    if not len(doubtful) or len(usual) < 4 * len(doubtful) or (events.what == WHOLE_GRAPH).any():
        return none
    width = len(events.names)

    def names(cycle: int) -> Ints:
        rows = events.name[cycles.begin[cycle] : cycles.end[cycle]]
        return np.bincount(rows, minlength=width)

    bag = events.bags[cycles.end] - events.bags[cycles.begin]
    _, first, count = np.unique(bag[usual], return_index=True, return_counts=True)
    model = names(int(usual[first[np.argmax(count)]]))
    _, first, which = np.unique(bag[doubtful], return_index=True, return_inverse=True)
    for number, one in enumerate(doubtful[first].tolist()):
        own = names(one)
        if np.minimum(model, own).sum() < UNLIKE * min(model.sum(), own.sum()):
            none[doubtful[which == number]] = True
    return none


def _begins_requests(events: Events, cycles: Cycles, decode: Flags) -> Flags:
    """Cycles of other kernels than most, nearly each of which the device was idle before for longer
    than a step: the short prefill of a request that was waited for. A stall of a step hits any."""
    mine = np.flatnonzero(decode[1:] & (cycles.begin[1:] == cycles.end[:-1])) + 1
    if len(mine) < LEAST_REPEATS:
        return np.zeros(len(cycles), bool)
    begin = cycles.begin[mine]
    gap = np.maximum(0, events.start_ns[begin] - events.before_ns[begin])
    typical = np.median(events.start_ns[begin] - events.start_ns[cycles.begin[mine - 1]])
    bag = events.kernel_bags[cycles.end[mine]] - events.kernel_bags[begin]
    _, which, count = np.unique(bag, return_inverse=True, return_counts=True)
    waited = np.bincount(which, gap > np.median(gap) + typical, len(count))
    starts = (waited >= 2) & (waited >= WAITED * count)
    starts[np.argmax(count)] = False
    # That of the first request has nothing before it.
    bags = events.kernel_bags[cycles.end] - events.kernel_bags[cycles.begin]
    same: Flags = decode & np.isin(bags, np.unique(bag[starts[which]]))
    return same


def _alone(events: Events, cycles: Cycles, decode: Flags) -> Flags:
    """Cycles of kernels that hardly any other has, without a decode step before or behind: trial
    runs of an engine that loads, not steps of a request."""
    bag = events.kernel_bags[cycles.end] - events.kernel_bags[cycles.begin]
    _, which = np.unique(bag, return_inverse=True)
    count = np.bincount(which, decode)
    beside = np.zeros(len(cycles), bool)
    beside[1:] |= decode[:-1]
    beside[:-1] |= decode[1:]
    found: Flags = decode & ~beside & (count[which] < LEAST_REPEATS)
    few = np.count_nonzero(decode & ~found) < LEAST_REPEATS
    return found & ~few


def _training(events: Events, cycles: Cycles, decode: Flags) -> bool:
    """Do most cycles run a backward pass?"""
    said = np.array([bool(_BACKWARD.search(name)) for name in events.names] or [False])
    return _in_each(said[events.name], cycles, np.flatnonzero(decode))


def _refused(reason: str, cycles: Cycles | None, events: Events) -> Detection:
    none = np.empty(0, np.int64)
    seen = () if cycles is None else _candidates(cycles, chosen=True)
    return Detection(none, none, np.empty(0, bool), none, None, reason, seen)


def _by_stream(events: Events) -> list[tuple[int, Ints, Cycles]]:
    """(stream, rows, cycles) of every heavy stream; empty where there is but one."""
    low = int(events.stream.min())
    if int(events.stream.max()) == low:
        return []
    if int(events.stream.max()) - low < 1 << 20:  # sorting ten million rows takes a second
        which = events.stream - low
        streams = np.arange(low, int(events.stream.max()) + 1)
        count = np.bincount(which)
    else:
        streams, which, count = np.unique(events.stream, return_inverse=True, return_counts=True)
    work = np.bincount(which, events.end_ns - events.start_ns)
    heavy = np.flatnonzero((count >= HEAVY * len(events)) & (work >= HEAVY * work.sum()))
    if len(heavy) < 2:
        return []
    parts = []
    for h in heavy.tolist():
        rows = np.flatnonzero(which == h)
        parts.append((int(streams[h]), rows, search(events.take(rows))))
    return parts


def _joined(events: Events, parts: list[tuple[int, Ints, Cycles]]) -> Detection:
    """Streams that decode on their own, each with its cycles as rows of all events."""
    found = []
    for stream, rows, cycles in parts:
        one = _verdict(events.take(rows), cycles)
        if one.evidence is None:
            return replace(one, reason=f"stream {stream}: {one.reason}")
        behind = np.append(rows, rows[-1] + 1)
        found.append(
            replace(
                one,
                begin=rows[one.begin],
                end=behind[one.end],
                stream=np.full(len(one), stream, np.int64),
            )
        )
    main = max(found, key=len)
    order = [main, *(f for f in found if f is not main)]
    return Detection(
        begin=np.concatenate([f.begin for f in order]),
        end=np.concatenate([f.end for f in order]),
        decode=np.concatenate([f.decode for f in order]),
        stream=np.concatenate([f.stream for f in order]),
        evidence=main.evidence,
        reason="",
        candidates=main.candidates,
        streams=tuple(int(f.stream[0]) for f in order),
    )


def _alike(events: Events, cycles: Cycles) -> Flags:
    """Decode steps: cycles of a frequent bag of work, or like one in names and in time."""
    decode = np.zeros(len(cycles), bool)
    busy = (events.busy_ns[cycles.end] - events.busy_ns[cycles.begin]).astype(np.float64)
    bag = events.bags[cycles.end] - events.bags[cycles.begin]
    width = len(events.names)

    def names(i: int) -> Ints:
        return np.bincount(events.name[cycles.begin[i] : cycles.end[i]], minlength=width)

    for owner in range(len(cycles.passes)):
        mine = np.flatnonzero(cycles.owner == owner)
        _, first, which, count = np.unique(
            bag[mine], return_index=True, return_inverse=True, return_counts=True
        )
        many = count >= max(LEAST_REPEATS, 0.02 * len(mine))
        if not many.any():
            many = count == count.max()
        often = many[which]
        usual = float(np.median(busy[mine][often]))
        decode[mine[often & (busy[mine] <= 3 * usual)]] = True
        many &= np.bincount(which, decode[mine], len(count)) > 0  # else prefills are alike
        common = np.flatnonzero(many)[np.argsort(-count[many], kind="stable")][:16]
        model = np.stack([names(int(mine[first[c]])) for c in common.tolist()])
        work = np.array([np.median(busy[mine][which == c]) for c in common.tolist()])
        for i in mine[~decode[mine]].tolist():
            own = names(i)
            same = 1 - np.abs(model - own).sum(axis=1) / (model.sum(axis=1) + own.sum())
            best = int(np.argmax(same))
            decode[i] = same[best] >= ALIKE and 0.4 <= busy[i] / work[best] <= 2.5
    return decode


def _signs(
    events: Events, cycles: Cycles, found: Pass, number: int, decode: Flags
) -> tuple[str, ...]:
    """What speaks for steps in one pass; empty: it may be layers, or anything."""
    level, signs = found.level, []
    mine = np.flatnonzero((cycles.owner == number) & decode)
    if level.token_copy or _in_each(events.token_copies, cycles, mine):
        signs.append("a copy to the host each")
    if level.sampling or _in_each(events.sampling, cycles, mine):
        signs.append(SAMPLED)
    whole = _in_each(events.what == WHOLE_GRAPH, cycles, mine)
    if whole or _one_graph_each(events, cycles, mine):
        signs.append("one graph launch each")
    if not signs:
        return ()
    if level.embedding:
        signs.append("an embedding each")
    if level.layered:
        signs.append("layers inside")
    # One name proves little: mixture-of-experts layers choose by a top-k too.
    return () if signs == [SAMPLED] else tuple(signs)


def _in_each(flags: Flags, cycles: Cycles, mine: Ints) -> bool:
    """Is there at least one in nearly every cycle (speculative steps have several)?"""
    if not len(mine):
        return False
    seen = np.concatenate([[0], np.cumsum(flags)])
    there = seen[cycles.end[mine]] > seen[cycles.begin[mine]]
    return bool(there.mean() >= 0.95)


def _one_graph_each(events: Events, cycles: Cycles, mine: Ints) -> bool:
    """Is most work of each of these cycles one launch of a graph, a new one each time?"""
    if len(mine) < LEAST_REPEATS or not np.any(events.node):
        return False
    sample = mine[:: max(1, len(mine) // 32)]
    seen = set()
    for i in sample.tolist():
        rows = slice(int(cycles.begin[i]), int(cycles.end[i]))
        launch = events.launch[rows][events.node[rows] > 0]
        if not len(launch):
            return False
        values, count = np.unique(launch, return_counts=True)
        if count.max() < 0.5 * (rows.stop - rows.start) or count.max() < 20:
            return False
        seen.add(int(values[np.argmax(count)]))
    return len(seen) == len(sample)


def _ambiguous(cycles: Cycles) -> str | None:
    """Two readings as good as each other, of which neither is made of the other."""
    owner = int(np.argmax(np.bincount(cycles.owner)))
    level, others = cycles.passes[owner].level, cycles.passes[owner].others
    for other in others:
        if level.marked and not other.marked and other.period < level.period:
            continue  # layers, or parts of them
        if level.coverage + other.coverage <= 1:
            continue  # of another program, at another time
        ratio = max(other.period, level.period) / min(other.period, level.period)
        # A median times a hundred is not the hundredfold: so many steps are whole ones.
        whole = ratio >= MANY or abs(ratio - round(ratio)) <= 0.1
        if other.score >= TIED * level.score and not whole:
            return (
                f"two readings are as good: {level.count} times {level.period:.0f} and"
                f" {other.count} times {other.period:.0f} kernels and copies"
            )
    return None


def _evidence(
    events: Events, cycles: Cycles, decode: Flags, signs: list[tuple[str, ...]]
) -> Evidence:
    span = max(1, int(events.end_ns.max() - events.start_ns[0]))
    last = np.minimum(cycles.end, len(events) - 1)
    covered = int((events.start_ns[last] - events.start_ns[cycles.begin]).sum())
    owner = int(np.argmax(np.bincount(cycles.owner[decode])))
    found = cycles.passes[owner]
    return Evidence(
        period=round(float(np.median((cycles.end - cycles.begin)[decode]))),
        repeats=int(np.count_nonzero(decode)),
        coverage=min(1.0, covered / span),
        anchor=_anchor_words(events, found),
        cut=found.cuts[0].rule,
        signs=signs[owner],
    )


def _anchor_words(events: Events, found: Pass) -> str:
    anchor = found.anchor
    if anchor.alphabet == "tag":
        return _TAGS[anchor.symbol]
    name = one_line(short_name(events.names[found.name]), 80)
    return {
        "name": name,
        "grid": f"{name} with one grid",
        "trigram": f"{name} and its neighbours",
        "node": f"graph node {anchor.symbol} ({name})",
    }[anchor.alphabet]


def _candidates(cycles: Cycles, chosen: bool = False) -> tuple[str, ...]:
    """Levels in words, best first."""
    texts = []
    for found in cycles.passes:
        levels: tuple[Level, ...] = ((found.level,) if chosen else ()) + found.others
        texts += [
            f"every {level.period:.0f} kernels and copies, {level.count} times"
            for level in levels
            if level.coverage >= 0.3
        ]
    return tuple(dict.fromkeys(texts))[:5]
