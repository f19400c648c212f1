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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.analysis.timing.compare import Comparison, compare_to_first
from llmprof.errors import EngineFailure
from llmprof.goal import Goal
from llmprof.records import EngineInfo, EngineRecord, RoundRecord, RunData, RunInfo
from llmprof.session.passes.clock import RunClock
from llmprof.session.passes.timing import TimingPass
from llmprof.workload import Workload

TABLES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("step_distributions.json").read_text(encoding="utf-8")
)
GRID = 4096


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
    """Time, and how slow the machine is at any time."""

    def __init__(self, random: np.random.Generator, hog: bool, horizon_s: float) -> None:
        self.now = 0.0
        edges, at = [], 0.0
        while hog and at < horizon_s:
            at += random.exponential(6.0)
            edges.append(at)
            at += random.exponential(4.0)
            edges.append(at)
        self._edges = np.array(edges)

    def factor(self) -> float:
        """1, or 1.5 while the hog is there (looked at once a step)."""
        return 1.5 if np.searchsorted(self._edges, self.now) % 2 else 1.0


class _Engine:
    """Stands where the session has an ``EngineRun``."""

    def __init__(
        self, number: int, world: World, machine: _Machine, random: np.random.Generator,
        workload: Workload,
    ) -> None:  # fmt: skip
        table = TABLES[world.table]
        shares, values = np.array(table["quantiles"]).T
        self._steps = np.interp(np.linspace(0, 1, GRID), shares, values)
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
        self.warmup_max_s, self.round_s = 60.0, None
        self.rounds: list[RoundRecord] = []
        self._pid = 100 * (number + 1)

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
        while self._machine.now - begin < min(self.warmup_max_s, 128 * self._median_s):
            stamps = self._decode(16)
        self.warmup_s = self._machine.now - begin
        self.prefill_s = self._ttft_s
        self.step_s = float(np.median(np.diff(stamps)))
        self.record.state = "ready"

    def _decode(self, steps: int) -> np.ndarray:
        """Stamps, s."""
        machine, noise = self._machine, self._random.standard_normal(steps)
        score, fresh = noise[0], math.sqrt(1 - self._alike**2)
        this_round = self.own * math.exp(self._spread * self._random.standard_normal())
        machine.now += self._ttft_s * machine.factor()
        stamps = [machine.now]
        for own in noise:
            score = self._alike * score + fresh * own
            share = 0.5 * (1 + math.erf(score / math.sqrt(2)))
            step = self._steps[min(GRID - 1, int(share * GRID))]
            machine.now += self._median_s * this_round * step * machine.factor()
            stamps.append(machine.now)
        return np.array(stamps)

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
