"""The timing pass: interleaved rounds until the goal is reached, with fresh processes between."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llmprof.analysis.timing.observed import batches, precise
from llmprof.analysis.timing.sequential import interval_at
from llmprof.analysis.timing.verdict import SAME_WITHIN
from llmprof.errors import EngineFailure
from llmprof.goal import FINE, EndedBy, Goal, round_length
from llmprof.records import RoundRecord, Unavailable
from llmprof.session.engine_run import EngineRun
from llmprof.session.passes.clock import ROUND, WARM_UP, RunClock
from llmprof.session.passes.schedule import Turns
from llmprof.session.recorder import Recorder

BATCHES = 36
"""Into the time of the timing pass: neighbours are disturbed alike, and a look wants a dozen."""
LEAST_ROUNDS = 5
LEAST_OF_MANY = 2
"""Rounds of one of several process pairs."""
MANY_PROCESSES = 8
"""Process pairs that ``auto`` makes, unless the first one tells."""
CHEAP = 0.05
"""Of the time: what a start of all engines may cost for ``auto`` to make many."""

Round = Callable[[EngineRun, int], RoundRecord]
Guard = Callable[[EngineRun, Callable[[], object]], None]


class TimingPass:
    """Args:
    one_round: make round number so much of an engine.
    guard: call, and end the engine where it fails.
    traces: is there a traced pass to keep time for?
    """

    def __init__(
        self,
        runs: Sequence[EngineRun],
        goal: Goal,
        seed: int,
        clock: RunClock,
        recorder: Recorder,
        one_round: Round,
        guard: Guard,
        traces: bool,
        adapt: bool,
    ) -> None:
        self.goal = goal
        self._runs = runs
        self._clock = clock
        self._recorder = recorder
        self._one_round = one_round
        self._guard = guard
        self._traces = traces
        self._adapt = adapt
        self._turns = Turns(len(runs), seed)
        self._index = 0
        self._precise = self._auto = False
        self._width: float | None = None
        self._rates: list[dict[int, float]] = [{} for _ in runs]
        if goal.rounds is None:
            for run in runs:
                run.warmup_max_s = min(run.warmup_max_s, goal.max_s * WARM_UP / len(runs))
                run.round_s = goal.max_s * ROUND / len(runs) if adapt else None

    def start(self, trace: str | None) -> bool:
        """Load and warm up all engines, each in a fresh process.

        Returns:
            False when they do not fit into memory together; none is loaded then.
        """
        for number in self._turns.next() if self._index else range(len(self._runs)):
            run = self._runs[number]
            if not run.alive:
                continue
            try:
                run.start(trace)
            except EngineFailure as why:
                if why.kind == "oom" and any(o.record.state == "ready" for o in self._runs):
                    for other in self._runs:
                        # What is parked is small: its turn comes without another load.
                        other.end(kill=other is run or not other.keeps)
                    return False
                run.fail(why)
        return True

    def settle(self) -> None:
        """After the first warm-up: length of a round, process pairs."""
        alive = [run for run in self._runs if run.alive]
        goal = self.goal
        if goal.rounds is None and alive:
            length = self._length(alive[0].plan.workload.decode_len, goal.processes or 1)
            if goal.processes is None:
                self._clock.loading_counts()
                cost = sum(run.loading_s + run.warmup_s for run in alive)
                fitting = self._clock.timing_left(self._traces) / max(1e-9, self._seconds(length))
                many = cost <= CHEAP * goal.max_s and fitting >= MANY_PROCESSES * LEAST_ROUNDS
                # A worker that is kept for a next run comes back as the same process.
                self._auto = many and len(alive) > 1 and not any(run.keeps for run in alive)
                goal = replace(goal, processes=MANY_PROCESSES if self._auto else 1)
                length = self._length(length, goal.processes or 1)
            for run in self._runs:
                run.shorten(length)
                run.warmup_max_s /= goal.processes or 1
        goal = replace(goal, processes=goal.processes or 1)
        self.goal = goal
        self._tell()

    def _length(self, asked: int, processes: int) -> int:
        """Decode steps of a round: of many process pairs each has rounds enough of its own."""
        if not self._adapt:
            return asked
        most = self.goal.max_s * ROUND
        share = max(0.0, self._clock.timing_left(self._traces)) / processes * ROUND
        met = [run.met_steps for run in self._runs if run.alive and run.met_steps]
        return round_length(self._seconds, min([asked, *met]), most, min(most / FINE, share))

    def _seconds(self, steps: int) -> float:
        """A round of all engines."""
        return sum(run.prefill_s + steps * run.step_s for run in self._runs if run.alive)

    def take_turns(self, trace: str | None) -> None:
        """The rounds of all process pairs."""
        processes = self.goal.processes or 1
        for number in range(processes):
            if number:
                if self.goal.rounds is None and self._clock.timing_left(self._traces) <= 0:
                    break
                for run in self._runs:
                    run.end()
                if not self.start(trace):
                    raise EngineFailure("the engines no longer fit into memory together", "oom")
            self._rounds_of_one(number, processes)
            if self._auto and self._told():
                self.goal = replace(self.goal, processes=1)
                self._tell()
                self._rounds_of_one(0, 1)
                break
            self._auto = False
        self._done()

    def alone(self, run: EngineRun) -> None:
        """The rounds of an engine that has the memory to itself: its share of the time."""
        goal = self.goal
        if goal.rounds is None and self._adapt:
            # The first one decides for all: the others are not loaded yet.
            self._adapt = False
            room = goal.max_s * ROUND / len(self._runs)
            length = min(run.plan.workload.decode_len, run.met_steps or sys.maxsize)
            length = round_length(
                lambda n: run.prefill_s + n * run.step_s, length, room, room / FINE
            )
            for other in self._runs:
                other.shorten(length)
        later = [r for r in self._runs if r.record.engine_id >= run.record.engine_id and r.alive]
        shares = max(1, len(later))
        end = self._clock.timing_left(self._traces) / shares
        least = self._clock.timing_left(self._traces, least=True) / shares
        begin, index = self._clock.spent(), 0
        while True:
            self._one_round(run, index)
            index += 1
            spent = self._clock.spent() - begin
            if goal.rounds is not None:
                if index >= goal.rounds:
                    return
            elif spent * (1 + 1 / index) > (end if index >= LEAST_ROUNDS else least):
                return  # too slow for five rounds: the time ends it all the same

    def end_blocks(self) -> None:
        self.goal = replace(self.goal, ended_by="rounds" if self.goal.rounds else "time")
        self._tell()

    def _rounds_of_one(self, number: int, processes: int) -> None:
        goal, first = self.goal, self._index
        share = self._clock.timing_left(self._traces) / (processes - number)
        begin = self._clock.spent()
        while any(run.alive for run in self._runs):
            for engine in self._turns.next():
                run = self._runs[engine]
                if run.alive:
                    self._guard(run, partial(self._rated, run, engine))
            self._index += 1
            done, spent = self._index - first, self._clock.spent() - begin
            if self._index == LEAST_ROUNDS and goal.rounds is None:
                # By what a round really takes, its pauses included; fixed before the first look.
                fitting = self._index + self._clock.timing_left(self._traces) / (spent / done)
                goal = replace(goal, batch_rounds=max(1, round(fitting / BATCHES)))
                self.goal = goal
                self._tell()
            self._look(goal, done)
            if ended := self._ended(goal, done, spent, share, number, processes):
                self.goal = replace(goal, ended_by=ended)
                return

    def _rated(self, run: EngineRun, engine: int) -> None:
        record = self._one_round(run, self._index)
        rate = _rate(record)
        if rate is not None:
            self._rates[engine][self._index] = rate

    def _ended(
        self, goal: Goal, done: int, spent: float, share: float, number: int, processes: int
    ) -> EndedBy:
        """Of this process pair's rounds."""
        if goal.rounds is not None:
            upto = math.ceil(goal.rounds * (number + 1) / processes)
            return "rounds" if self._index >= upto else ""
        next_end = spent + spent / done
        if done >= (LEAST_ROUNDS if processes == 1 else LEAST_OF_MANY):
            if next_end > share:
                return "time"
            if processes == 1 and self._precise:
                return "precision"
        # Too slow for five rounds: the time ends it all the same.
        left = self._clock.timing_left(self._traces, least=True)
        left -= share * (processes - number - 1)
        return "time" if spent / done > left else ""

    def _logs(self) -> list[list[float]]:
        """What must be precise: log ratios to the first engine; of one alone, its log rate."""
        base, others = self._rates[0], self._rates[1:]
        if not others:
            return [[math.log(base[i]) for i in sorted(base)]]
        series = []
        for rates in others:
            common = sorted(base.keys() & rates.keys())
            if common and self._index - 1 - common[-1] < LEAST_ROUNDS:  # both still run
                series.append([math.log(rates[i] / base[i]) for i in common])
        return series

    def _told(self) -> bool:
        """Does the first pair of processes tell already, so that no other could change it?

        It does where its confidence sequence lies beyond what may be called the same: that holds
        whenever one looks, and two processes of one engine differ by less than this.
        """
        found = [interval_at(series) for series in self._logs()]
        far = math.log1p(SAME_WITHIN)
        return bool(found) and not any(
            isinstance(f, Unavailable) or (f[0] <= far and f[1] >= -far) for f in found
        )

    def _look(self, goal: Goal, done: int) -> None:
        """After a batch: how precise is it? After every round: tell the time."""
        if goal.rounds is not None:
            return
        if done % goal.batch_rounds == 0:
            means = [batches(series, goal.batch_rounds) for series in self._logs()]
            wanted = math.log1p(goal.precision)
            self._precise = bool(means) and all(precise(m, wanted) for m in means)
            found = [interval_at(m) for m in means]
            widths = [math.inf if isinstance(f, Unavailable) else (f[1] - f[0]) / 2 for f in found]
            width = max(widths, default=math.inf)
            self._width = None if math.isinf(width) else math.expm1(width)
        left = max(0.0, self._clock.timing_left(self._traces))
        self._recorder.goal(self._width, goal.precision, left)

    def _done(self) -> None:
        if self.goal.ended_by:
            self._tell()

    def _tell(self) -> None:
        workload: dict[str, Any] = self._runs[0].plan.workload.to_dict()
        if self.goal.ended_by and self._index:
            workload["rounds"] = self._index
        self._recorder.workload({**workload, "goal": self.goal.to_dict()})


def _rate(record: RoundRecord) -> float | None:
    """Steps a second of a whole round; ``None`` for one cut short."""
    end = record.stamps_ns[-1] if record.synchronous and len(record.stamps_ns) else record.end_ns
    if not record.complete or not record.steps or end <= record.stamps_ns[0]:
        return None
    return record.steps / (end - record.stamps_ns[0]) * 1e9
