"""Planted kernels on two streams that share the memory: who streams slows the other down."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from dram_factory import PEAK_GB_S, Floats, Ints

from llmprof.analysis.bandwidth.fit.grouping import Grouping, grouped
from llmprof.analysis.bandwidth.fit.kernel_fit import Samples

MOST_GB_S = 3300.0
"""All kernels together; 98 % of the peak, as seen on an H100."""
LATENCY_NS = 900
"""From a kernel's begin to its first byte."""


@dataclass(frozen=True)
class Reader:
    """Reads from its begin, then spins."""

    name: str
    mb: float
    spin_ns: int = 0
    alone_gb_s: float = MOST_GB_S
    beside_gb_s: float = MOST_GB_S
    """Beside a kernel that takes all it can get."""


FULL = Reader("full(float*)", 50.0)
READ_THEN_SPIN = Reader("read_then_spin(float*)", 16.0, 40_000)
TRICKLE = Reader("trickle(float*)", 4.0, 0, 218.0, 100.0)
NOTHING = Reader("nothing(float*)", 0.0, 2_000)
TINY = Reader("tiny(float*)", 0.0, 1_500)
LONG = Reader("long(float*)", 150.0)
READERS = (FULL, LONG, READ_THEN_SPIN, TRICKLE, NOTHING, TINY)


@dataclass(eq=False)
class Streams:
    """Launches of ``READERS`` and the traffic that they make."""

    rng: np.random.Generator
    now: float = 1e6
    launches: list[tuple[float, float, int]] = field(default_factory=list)
    """Begin, end, reader."""
    traffic: list[tuple[float, float, float]] = field(default_factory=list)
    """Begin, end, GB/s."""

    def alone(self, reader: Reader) -> None:
        self.now = self._run([(self.now, reader)]) + self.rng.integers(700, 1300)

    def beside(self, first: Reader, second: Reader, later_ns: float) -> None:
        """Both; what comes next waits for both."""
        end = self._run([(self.now, first), (self.now + max(100.0, later_ns), second)])
        self.now = end + self.rng.integers(700, 1300)

    def _run(self, pair: list[tuple[float, Reader]]) -> float:
        """End of the last."""
        left = [r.mb * 1e6 for _, r in pair]  # bytes; GB/s are bytes a ns
        first = [at + LATENCY_NS for at, _ in pair]
        done = list(first)
        now = min(first)
        while max(left) > 0:
            reads = [i for i in range(len(pair)) if left[i] > 0 and first[i] <= now]
            speed = dict.fromkeys(range(len(pair)), 0.0)
            for i in sorted(reads, key=lambda i: pair[i][1].beside_gb_s):
                reader = pair[i][1]
                wanted = reader.alone_gb_s if len(reads) == 1 else reader.beside_gb_s
                speed[i] = min(wanted, MOST_GB_S - sum(speed.values()))
            then = [first[i] for i in range(len(pair)) if first[i] > now]
            then += [now + left[i] / speed[i] for i in reads]
            until = min(then)
            self.traffic.append((now, until, sum(speed.values())))
            for i in reads:
                left[i] -= speed[i] * (until - now)
                if left[i] < 1:
                    left[i], done[i] = 0.0, until
            now = until
        last = 0.0
        for (at, reader), end in zip(pair, done, strict=True):
            # Blocks end one after the other.
            until = end + reader.spin_ns * self.rng.normal(1, 0.003) + self.rng.uniform(300, 600)
            self.launches.append((at, until, READERS.index(reader)))
            last = max(last, until)
        return last

    def measured(self, noise_pct: float = 0.03, interval_ns: int = 200_000) -> Recording:
        """What a tracer and a sampler see of it."""
        begin, until, speed = np.array(self.traffic).T
        at = np.concatenate((begin, until))
        order = np.argsort(at, kind="stable")
        level = np.cumsum(np.concatenate((speed, -speed))[order])
        moved = np.concatenate(([0], np.cumsum(level[:-1] * np.diff(at[order]))))
        edges = np.arange(1_001_234, int(self.now), interval_ns)
        value = np.diff(np.interp(edges, at[order], moved)) / interval_ns / PEAK_GB_S * 100
        value += noise_pct * self.rng.standard_normal(len(value))
        table = np.array(sorted(self.launches))
        start, end = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
        samples = Samples(
            edges[:-1], edges[1:], np.maximum(value, 0), np.zeros(len(value), np.int64),
            np.empty((len(value), 0)),
        )  # fmt: skip
        key = table[:, 2].astype(np.int64)
        return Recording(start, end, key, samples, grouped(key, start, end))


@dataclass(frozen=True, eq=False)
class Recording:
    start: Ints
    end: Ints
    key: Ints
    samples: Samples
    groups: Grouping

    def mean_pct(self, reader: Reader, duration_ns: float) -> float:
        """Of a launch that takes so long."""
        return float(reader.mb * 1e6 / duration_ns / PEAK_GB_S * 100)

    def durations(self, reader: Reader) -> Floats:
        mine = self.key == READERS.index(reader)
        return (self.end - self.start)[mine].astype(np.float64)
