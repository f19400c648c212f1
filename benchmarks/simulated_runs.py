"""Runs on simulated time: the session's own timing pass over engines that decode by a table.

What decides (``session.passes.timing``, ``analysis.timing``) is the product's; simulated are the
clock, the workers and their steps. A step is drawn from the recorded quantiles by a chain whose
neighbours are as alike as the recorded ones (Gaussian copula of an AR(1)); rounds have the recorded
spread of their medians besides; the machine's state (a hog that comes and goes) is a function of
time that both engines see; a process has a factor of its own for life.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from llmprof.analysis.timing.compare import Comparison, compare_to_first
from llmprof.errors import EngineFailure
from llmprof.goal import FINE, SHORTEST, Goal, round_length
from llmprof.records import EngineInfo, EngineRecord, RoundRecord, RunData, RunInfo, Unavailable
from llmprof.session.passes.clock import RunClock
from llmprof.session.passes.timing import TimingPass
from llmprof.worker.rounds import TOLERANCE
from llmprof.workload import Workload

TABLES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("step_distributions.json").read_text(encoding="utf-8")
)
GRID = 4096
RECORDED = 64
"""Steps of a recorded round. Shorter ones are taken to scatter more, by the root of their share:
cut into pieces, a round then tells no more than as a whole."""
AWAY_S, THERE_S, SLOWER = 6.0, 4.0, 1.5
"""A hog: how long it stays away and is there, s, on average; all takes 1.5 times as long then."""


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes:
        slower: engine B's steps take this much longer, 0.01 = 1 %.
        process: largest difference of two processes of one engine, 0–1.
        hog: does a CPU hog come and go?
        loading_s: of each engine, each time.
    """

    table: str
    slower: float = 0.0
    process: float = 0.0
    hog: bool = False
    loading_s: float = 5.0
    fixed_process: float = 0.0
    """Every process of B is slower by this: a single pair cannot know that it is not the engine."""


class _Machine:
    """Time, and how much of its work a machine does in it: less while a hog is there."""

    def __init__(self, random: np.random.Generator, hog: bool, horizon_s: float) -> None:
        self.now = 0.0
        many = math.ceil(horizon_s / (AWAY_S + THERE_S)) if hog else 0
        spans = np.empty(2 * many + 1)
        spans[0:-1:2] = random.exponential(AWAY_S, many)
        spans[1::2] = random.exponential(THERE_S, many)
        spans[-1] = 1000 * horizon_s
        slower = np.where(np.arange(len(spans)) % 2, SLOWER, 1.0)
        self._times = np.concatenate([[0.0], np.cumsum(spans)])
        self._work = np.concatenate([[0.0], np.cumsum(spans / slower)])

    def stamps(self, work_s: np.ndarray) -> np.ndarray:
        """When each of these pieces of work, in their order from now on, is done; then is now."""
        done = np.interp(self.now, self._times, self._work) + np.cumsum(work_s)
        stamps = np.interp(done, self._work, self._times)
        self.now = float(stamps[-1])
        return stamps


@lru_cache
def _step_of_score(table: str) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores, and the recorded step (of its round's median) at each."""
    shares, values = np.array(TABLES[table]["quantiles"]).T
    scores = np.linspace(-5, 5, GRID)
    return scores, np.interp([NormalDist().cdf(z) for z in scores], shares, values)


@lru_cache
def _chain(alike: float, steps: int) -> np.ndarray:
    """What makes an AR(1) of that lag-1 correlation, of variance 1, of independent scores."""
    back = np.subtract.outer(np.arange(steps), np.arange(steps))
    chain = np.where(back >= 0, alike ** np.maximum(back, 0), 0.0)
    chain[:, 1:] *= math.sqrt(1 - alike**2)
    return chain


class _Engine:
    """Stands where the session has an ``EngineRun``."""

    def __init__(
        self, number: int, world: World, machine: _Machine, random: np.random.Generator,
        workload: Workload,
    ) -> None:  # fmt: skip
        table = TABLES[world.table]
        self._steps = _step_of_score(world.table)
        self._alike = float(table["neighbours"])
        self._spread = float(table["round_spread"])
        self._median_s = table["step_ms"] / 1e3 * (1 + world.slower * number)
        self._median_s *= 1 + world.fixed_process * number
        self._ttft_s = table["ttft_ms"] / 1e3
        self._world, self._machine, self._random = world, machine, random
        self.record = EngineRecord(number, "AB"[number], "simulated", "python", {})
        self.record.info = EngineInfo()
        self.plan = _Plan(workload)
        self.loading_s = self.warmup_s = self.prefill_s = self.step_s = 0.0
        self.warmup_max_s, self.round_s, self.met_steps = 60.0, None, None
        self.rounds: list[RoundRecord] = []
        self._pid = 100 * (number + 1)

    keeps = False

    @property
    def alive(self) -> bool:
        return True

    def start(self, trace: str | None) -> None:
        self._pid += 1
        half = self._world.process / 2
        self.own = 1 + self._random.uniform(-half, half)
        self._machine.now += self._world.loading_s
        self.loading_s += self._world.loading_s
        begin = self._machine.now
        self._warm_up(begin)
        self.warmup_s = self._machine.now - begin
        self.prefill_s = self._ttft_s
        self.record.state = "ready"

    def _warm_up(self, begin: float) -> None:
        """As ``worker.rounds.warm_up``: a few steps, then rounds until two are alike."""
        steps, medians = SHORTEST, list[float]()
        while True:
            laps = np.diff(self._decode(steps))
            self.step_s = float(np.median(laps))
            medians += [self.step_s] if steps > SHORTEST else []
            spent = self._machine.now - begin
            alike = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= TOLERANCE
            if alike or spent > self.warmup_max_s:
                return
            if steps == SHORTEST:
                steps = self._warm_up_length()

    def _warm_up_length(self) -> int:
        asked = self.plan.workload.decode_len
        if self.round_s is None:
            return asked

        def seconds(steps: int) -> float:
            return self._ttft_s + steps * self.step_s

        return round_length(seconds, asked, self.round_s, self.round_s / FINE)

    def _decode(self, steps: int) -> np.ndarray:
        """Stamps, s: the first is of the prefill."""
        score = _chain(self._alike, steps) @ self._random.standard_normal(steps)
        spread = self._spread * math.sqrt(max(1.0, RECORDED / steps))
        this_round = self.own * math.exp(spread * self._random.standard_normal())
        work = np.empty(steps + 1)
        work[0] = self._ttft_s
        work[1:] = self._median_s * this_round * np.interp(score, *self._steps)
        return self._machine.stamps(work)

    def shorten(self, decode_len: int) -> None:
        self.plan = _Plan(replace(self.plan.workload, decode_len=decode_len))
        self.round_s = None

    def one_round(self, index: int) -> RoundRecord:
        begin = self._machine.now
        stamps = self._decode(self.plan.workload.decode_len)
        made = RoundRecord(
            len(self.rounds) * 2 + self.record.engine_id, self.record.engine_id, "timing", index,
            self._pid, self._pid, int(begin * 1e9), int(begin * 1e9),
            array("q", (stamps * 1e9).astype(np.int64).tolist()), int(stamps[-1] * 1e9), True,
        )  # fmt: skip
        self.rounds.append(made)
        return made

    def end(self, kill: bool = False) -> None:
        self.record.state = "pending"

    def fail(self, why: EngineFailure) -> None:
        raise why


@dataclass
class _Plan:
    workload: Workload


class _Recorder:
    """Keeps what the run file would hold of the workload."""

    def workload(self, workload: dict[str, Any]) -> None:
        self.kept = workload

    def goal(self, half_width: float | None, wanted: float, left_s: float) -> None: ...


@dataclass(frozen=True)
class Ended:
    pair: Comparison
    rounds: int
    ended_by: str
    spent_s: float
    """Without loading."""
    truth: float
    """tok/s of B / tok/s of A: of these two processes where there is one pair, else of the
    engines."""


def simulate(world: World, goal: Goal, seed: int) -> Ended:
    """One run of engines A and B, from the same table, ``world.slower`` apart."""
    random = np.random.default_rng([seed, 20261126])
    machine = _Machine(random, world.hog, 40 * goal.max_s)
    workload = Workload(((1, 2, 3),), decode_len=64, rounds=goal.rounds, seed=seed)
    engines: Any = [_Engine(i, world, machine, random, workload) for i in (0, 1)]
    recorder: Any = _Recorder()
    clock = RunClock(goal, engines, lambda: machine.now)
    timing = TimingPass(
        engines, goal, seed, clock, recorder, lambda run, index: run.one_round(index),
        lambda run, action: action(), True, True,
    )  # fmt: skip
    timing.start(None)
    timing.settle()
    timing.take_turns(None)
    rounds = sorted((r for e in engines for r in e.rounds), key=lambda r: r.start_ns)
    info = RunInfo(0, 0, "", None, [], recorder.kept, {}, "steps", "finished")
    data = RunData(info, [e.record for e in engines], rounds)
    (pair,) = compare_to_first(data)
    truth = 1 / ((1 + world.slower) * (1 + world.fixed_process))
    if pair.processes == 1:
        truth *= engines[0].own / engines[1].own
    return Ended(pair, len(rounds) // 2, timing.goal.ended_by, clock.spent(), truth)


@dataclass
class Series:
    """Runs of one world with one goal."""

    seen: Counter[str]
    intervals: int
    covered: int
    spent_s: list[float]
    pairs: list[int]

    @property
    def runs(self) -> int:
        return len(self.spent_s)

    def share(self, *outcomes: str) -> float:
        return sum(self.seen[o] for o in outcomes) / self.runs

    @property
    def coverage(self) -> float:
        """Of the intervals: how many hold the true ratio, 0–1."""
        return self.covered / max(1, self.intervals)


def series(world: World, goal: Goal, seeds: Iterable[int]) -> Series:
    """One run a seed."""
    found = Series(Counter(), 0, 0, [], [])
    for seed in seeds:
        ended = simulate(world, goal, seed)
        found.seen[ended.pair.outcome] += 1
        found.spent_s.append(ended.spent_s)
        found.pairs.append(ended.pair.processes)
        ratio = ended.pair.tok_s_ratio
        if not isinstance(ratio.low, Unavailable):
            found.intervals += 1
            found.covered += ratio.low <= ended.truth <= ratio.high
    return found


def started(world: World, pairs: int | None) -> World:
    """``auto`` makes many process pairs only where starting is cheap: it starts in 0.3 s here."""
    return replace(world, loading_s=0.3) if pairs is None else world
