"""Where the host's time goes inside the decode steps, from sampled stacks.

Samples come at moments that are independent of what the host does, so their share is a share of
time, with the error of a count: n samples tell a share p to within about 2 sqrt(p (1 - p) / n).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from llmprof.analysis.host.frames import (
    ORIGINS,
    Kind,
    Origin,
    below_loop,
    kind_of,
    label,
    origin,
)
from llmprof.records import HostFrame, HostRound, RoundRecord, Unavailable
from llmprof.records.steps import counted
from llmprof.runfile.trace.host_rows import HostRows

BUSY_THREAD = 0.10
"""A Python thread beside the decoding one counts as busy from this share of a processor on."""
TOP = 40
ONE_CALL = 0.5
"""A line of Python that this share of the samples stand in is one call that they cannot look into.

MLC's serving engine is ``self._ffi["step"]()``: all its samples said that, and were called
computing on the host while the GPU worked for five sixths of the step."""
LEAST_SAMPLES = 20


@dataclass(frozen=True)
class StepSample:
    """The decoding thread at one moment of a decode step."""

    time_ns: int
    step: int
    """From 1."""
    stack: tuple[HostFrame, ...]
    """Innermost first, without llmprof's own loop."""
    kind: Kind
    gil: float
    """Probability that it only waited for the GIL (``_fighting``)."""


@dataclass(frozen=True)
class FrameTime:
    """One function of the stacks."""

    label: str
    """``function (file)``."""
    origin: Origin
    self_share: float
    """Of the samples: it was the innermost frame."""
    inclusive_share: float
    """Of the samples: it was on the stack."""
    self_ms_per_step: float
    inclusive_ms_per_step: float
    lines: tuple[tuple[str, float], ...]
    """Its lines on the stacks with their share, largest first, at most three."""


@dataclass(frozen=True)
class ThreadTime:
    """One thread of the worker during the traced round."""

    tid: int
    name: str
    python: bool
    decoding: bool
    cpu_share: float
    """Of one processor."""


@dataclass(frozen=True)
class HostReport:
    """Host time of the decode steps of one traced round."""

    samples: int
    """Of the decoding thread inside decode steps."""
    step_ms: float
    """Mean traced decode step."""
    kinds_ms_per_step: dict[str, float]
    """Add up to ``step_ms``."""
    frames: tuple[FrameTime, ...]
    """The engine's own first, then by inclusive share."""
    threads: tuple[ThreadTime, ...]
    verdict: str


@dataclass
class Flame:
    """A node of the tree of stacks; ``weight`` includes its children's."""

    label: str
    origin: Origin
    weight: float = 0.0
    own: float = 0.0
    children: dict[str, Flame] = field(default_factory=dict)


class HostTrace:
    """The sampled stacks of one traced round.

    Raises:
        ValueError: nothing was sampled inside a decode step.
    """

    def __init__(self, rows: HostRows, record: RoundRecord) -> None:
        self.sampled: HostRound = rows.sampled
        self.record = record
        self.threads = _threads(rows, record)
        stamps = np.array(record.stamps_ns, np.int64)
        busy = {
            t.tid: t.cpu_share
            for t in self.threads
            if t.python and not t.decoding and t.cpu_share >= BUSY_THREAD
        }
        own = sum(t.cpu_share for t in self.threads if t.decoding)
        fighting = _fighting(rows, busy, own)
        self.samples: tuple[StepSample, ...] = tuple(
            self._sample(rows, s.time_ns, step, s.stack, fighting.get(s.time_ns, 0.0))
            for s in rows.samples
            if s.tid == record.tid
            and 0 < (step := int(np.searchsorted(stamps, s.time_ns, "right"))) < len(stamps)
        )
        self._counted = np.array(counted(record.labels, record.steps), bool)
        if not self._of(None):
            raise ValueError(
                "no sample fell into a decode step (more --traced-steps, or --host-rate)"
            )
        self.one_call = None if self.sampled.native else one_call(self.samples)
        """The native call that most samples stand in; its samples are of kind ``native``."""
        if self.one_call is not None:
            self.samples = tuple(
                replace(s, kind="native") if _stands_in(s, self.one_call) else s
                for s in self.samples
            )

    @staticmethod
    def _sample(
        rows: HostRows, time_ns: int, step: int, numbers: Sequence[int], gil: float
    ) -> StepSample:
        unknown = "frame {0}"
        frames = [rows.frames.get(n) or HostFrame(n, unknown.format(n), "", 0, "") for n in numbers]
        stack = below_loop(frames)
        kind = kind_of(stack)
        return StepSample(time_ns, step, stack, kind, gil if kind in ("host", "launch") else 0.0)

    def kinds_ms(self, step: int | None = None) -> dict[str, float]:
        """Kind → ms of the mean step, or of one step; largest first, adding up to it. Empty where
        no sample fell into it."""
        kinds: Counter[str] = Counter()
        for s in self._of(step):
            kinds[s.kind] += 1 - s.gil  # type: ignore[assignment]
            kinds["gil"] += s.gil  # type: ignore[assignment]
        total = sum(kinds.values())
        return {k: self.step_ms(step) * n / total for k, n in kinds.most_common() if n > 0}

    def step_ms(self, step: int | None = None) -> float:
        """The mean traced step, or one of them."""
        stamps = self.record.stamps_ns
        if step is not None:
            return (stamps[step] - stamps[step - 1]) / 1e6
        walls = np.diff(np.array(stamps, np.int64))
        return float(np.mean(walls[self._counted])) / 1e6

    def _of(self, step: int | None) -> list[StepSample]:
        """Samples of the steps that count, or of one step."""
        if step is None:
            return [s for s in self.samples if self._counted[s.step - 1]]
        return [s for s in self.samples if s.step == step]

    @cached_property
    def report(self) -> HostReport:
        step_ms, by_kind = self.step_ms(), self.kinds_ms()
        return HostReport(
            samples=len(self._of(None)),
            step_ms=step_ms,
            kinds_ms_per_step=by_kind,
            frames=frame_times(((s.stack, 1.0) for s in self._of(None)), step_ms),
            threads=self.threads,
            verdict=_verdict(by_kind, step_ms, self.threads, self.one_call),
        )

    def weighted(self, step: int | None = None) -> list[tuple[tuple[HostFrame, ...], float]]:
        """(stack, 1) of every sample of the steps that count, or of those of one step."""
        return [(s.stack, 1.0) for s in self._of(step)]


def one_call(samples: Sequence[StepSample]) -> HostFrame | None:
    """The line in which ``ONE_CALL`` of the samples stand and of which no rule knows what it does;
    ``None`` where there is none, or too few samples."""
    lines = Counter(_place(s.stack[0]) for s in samples if s.stack and s.kind == "host")
    if len(samples) < LEAST_SAMPLES or not lines:
        return None
    (place, count), *_ = lines.most_common(1)
    if count < ONE_CALL * len(samples):
        return None
    found = next(s.stack[0] for s in samples if s.stack and _place(s.stack[0]) == place)
    # A loop of Python whose body is one line of arithmetic stands in one line too.
    return found if not found.source or "(" in found.source or "@" in found.source else None


def _stands_in(sample: StepSample, call: HostFrame) -> bool:
    there = sample.kind == "host" and bool(sample.stack)
    return there and _place(sample.stack[0]) == _place(call)


def _place(frame: HostFrame) -> tuple[str, str, int]:
    return frame.function, frame.file, frame.line


def frame_times(
    stacks: Iterable[tuple[Sequence[HostFrame], float]], total_ms: float
) -> tuple[FrameTime, ...]:
    """Self and inclusive time of every function, a recursive one counted once a stack.

    Args:
        stacks: each with its weight.
        total_ms: what the sum of the weights stands for.
    """
    own: Counter[tuple[str, str]] = Counter()
    on: Counter[tuple[str, str]] = Counter()
    lines: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    example: dict[tuple[str, str], HostFrame] = {}
    total = 0.0
    for stack, weight in stacks:
        total += weight
        seen = set()
        for depth, frame in enumerate(stack):
            key = (frame.function, frame.file)
            example.setdefault(key, frame)
            if depth == 0:
                own[key] += weight  # type: ignore[assignment]
            if key not in seen:
                seen.add(key)
                on[key] += weight  # type: ignore[assignment]
                lines[key][_line(frame)] += weight  # type: ignore[assignment]
    total = total or 1.0
    found = [
        FrameTime(
            label=label(example[key], with_line=False),
            origin=origin(example[key]),
            self_share=own[key] / total,
            inclusive_share=weight / total,
            self_ms_per_step=total_ms * own[key] / total,
            inclusive_ms_per_step=total_ms * weight / total,
            lines=tuple((text, n / total) for text, n in lines[key].most_common(3)),
        )
        for key, weight in on.items()
    ]
    found.sort(key=lambda f: (ORIGINS.index(f.origin) > 0, -f.inclusive_share, -f.self_share))
    kept = [f for f in found if f.origin == "engine"][: TOP // 2]
    return tuple([*kept, *(f for f in found if f.origin != "engine")][:TOP])


def _line(frame: HostFrame) -> str:
    return f"{frame.line}: {frame.source}" if frame.source else str(frame.line)


def flame(stacks: Iterable[tuple[Sequence[HostFrame], float]]) -> Flame:
    """The stacks as a tree from the outermost frame inwards."""
    root = Flame("all", "llmprof")
    for stack, weight in stacks:
        node = root
        node.weight += weight
        for frame in reversed(stack):
            text = label(frame)
            if text not in node.children:
                node.children[text] = Flame(text, origin(frame))
            node = node.children[text]
            node.weight += weight
        node.own += weight
    return root


def _threads(rows: HostRows, record: RoundRecord) -> tuple[ThreadTime, ...]:
    sampled = rows.sampled
    wall = max(1, sampled.cpu_wall_ns)
    found = [
        ThreadTime(
            tid=int(tid),
            name=sampled.threads.get(tid, ""),
            python=tid in sampled.threads,
            decoding=int(tid) == record.tid,
            cpu_share=ns / wall,
        )
        for tid, ns in sampled.cpu_ns.items()
        if tid.isdecimal()
    ]
    return tuple(sorted(found, key=lambda t: -t.cpu_share))


def _fighting(rows: HostRows, busy: dict[int, float], own: float) -> dict[int, float]:
    """Moment → rival / (rival + own) of the processor shares of busy Python threads not asleep.

    A thread that runs Python code holds the GIL while it does: of the time that the GIL was held,
    the rivals had this part. An upper bound, since code that lets go of the GIL counts too.
    """
    shares: defaultdict[int, float] = defaultdict(float)
    for s in rows.samples:
        if s.tid in busy:
            frames = [rows.frames[n] for n in s.stack if n in rows.frames]
            if kind_of(frames) != "wait":
                shares[s.time_ns] += busy[s.tid]
    return {moment: share / (share + own) for moment, share in shares.items()}


_WORDS = {
    "launch": "inside the framework",
    "sync": "waiting for the device or a copy",
    "graph update": "updating CUDA graphs",
    "allocator": "allocating memory",
    "wait": "asleep or waiting for a lock",
    "gil": "waiting for the GIL",
    "native": "inside one native call",
    "host": "computing on the host",
}


def _verdict(
    kinds: dict[str, float],
    step_ms: float,
    threads: Sequence[ThreadTime],
    call: HostFrame | None,
) -> str:
    parts = [
        f"{ms:.2f} ms {_WORDS[kind]}"
        for kind, ms in sorted(kinds.items(), key=lambda item: -item[1])
        if ms >= 0.05 * step_ms
    ]
    text = f"of {step_ms:.2f} ms a step the host spent {', '.join(parts)}"
    rivals = [t.name or str(t.tid) for t in threads if t.python and not t.decoding]
    if kinds.get("gil", 0.0) >= 0.05 * step_ms and rivals:
        text += f" (thread {rivals[0]} competes for it)"
    if call is not None:
        text += f"; what {label(call)} does inside is not resolved (--host-native shows it)"
    return text


def open_host(
    rows: HostRows | None, record: RoundRecord | None, why: str
) -> HostTrace | Unavailable:
    """The host side of a traced round, or why there is none."""
    if rows is None or record is None:
        return Unavailable(why)
    try:
        return HostTrace(rows, record)
    except ValueError as text:
        return Unavailable(str(text))
