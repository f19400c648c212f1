"""The timing pass and its verdicts on simulated time, and warm-up of an engine that is slow."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmprof.goal import Goal, fitting_length, round_length
from llmprof.records import EngineInfo, Unavailable
from llmprof.session.passes.clock import RunClock
from llmprof.session.passes.timing import TimingPass
from llmprof.session.warmed import warnings_of
from llmprof.worker.rounds import warm_up
from llmprof.worker.stamps import StampBoard

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from simulated_runs import World, simulate

GRAPH = "H100 graph"
RUNS = range(20)


def test_precision_ends_a_run_before_its_time() -> None:
    ended = [simulate(World(GRAPH), Goal(precision=0.01), seed) for seed in RUNS]
    assert {e.ended_by for e in ended} == {"precision"}
    for e in ended:
        assert e.spent_s < 48 and e.pair.method == "batches" and e.pair.outcome == "same"
        low, high = e.pair.tok_s_ratio.low, e.pair.tok_s_ratio.high
        assert not isinstance(low, Unavailable) and not isinstance(high, Unavailable)
        assert (high / low) ** 0.5 - 1 <= 0.0101


def test_time_ends_a_run_that_cannot_be_precise() -> None:
    e = simulate(World("busy CPU"), Goal(precision=0.001), 1)
    assert (e.ended_by, e.pair.outcome) == ("time", "inconclusive")
    assert e.rounds >= 5 and e.spent_s < 60
    assert isinstance(e.pair.needed_s, float) and "more would tell" in e.pair.verdict


def test_the_length_of_a_round_fits_the_time() -> None:
    """64 steps of 47 ms twice are 6 s: the tenth of half a minute is less."""
    e = simulate(World("busy CPU"), Goal(max_s=30.0), 1)
    assert e.rounds >= 5 and e.spent_s < 33
    assert fitting_length(lambda n: 0.01 * n, 64, 0.4) == 32
    assert fitting_length(lambda n: 0.01 * n, 50, 0.4) == 32
    assert fitting_length(lambda n: 0.01 * n, 50, 0.5) == 50
    assert fitting_length(lambda n: 10.0 * n, 64, 0.4) == 4
    assert fitting_length(lambda n: 10.0 * n, 2, 0.4) == 2
    assert round_length(lambda n: 0.01 * n, 64, 0.4, 0.2) == 16
    assert round_length(lambda n: 0.01 * n, 64, 0.4, 0.1) == 16
    assert round_length(lambda n: 0.01 * n, 64, 0.1, 0.05) == 8
    assert round_length(lambda n: 0.01 * n, 8, 0.4, 0.01) == 8


def test_exact_rounds_are_exact_and_split_over_processes() -> None:
    e = simulate(World(GRAPH), Goal(rounds=17, processes=6), 3)
    assert (e.rounds, e.ended_by, e.pair.processes) == (17, "rounds", 6)
    assert e.pair.method == "processes" and e.pair.allowance == 0


def test_processes_that_differ_are_no_difference_of_engines() -> None:
    """Each engine's processes lie up to 0.7 % apart, for life."""
    world = World(GRAPH, process=0.007)
    one = [simulate(world, Goal(processes=1), seed).pair for seed in RUNS]
    assert not any(pair.difference_seen for pair in one)
    many = [simulate(world, Goal(processes=8), seed).pair for seed in RUNS]
    assert sum(pair.difference_seen for pair in many) <= 3
    shares = [pair.process_share for pair in many]
    assert all(isinstance(share, float) and 0 <= share < 1 for share in shares)


def test_one_per_cent_is_found_over_eight_processes() -> None:
    world = World(GRAPH, slower=0.01, process=0.005)
    found = [simulate(world, Goal(processes=8), seed).pair.outcome for seed in RUNS]
    assert found.count("slower") >= 16 and "faster" not in found


def test_auto_keeps_the_first_processes_where_they_tell_already() -> None:
    """No process pair could turn 20 % round; 1 % it could."""
    goal = Goal(processes=None)
    far = simulate(World(GRAPH, slower=0.2, loading_s=0.1), goal, 1)
    assert (far.pair.processes, far.ended_by, far.pair.outcome) == (1, "precision", "slower")
    near = simulate(World(GRAPH, slower=0.01, loading_s=0.1), goal, 1)
    assert near.pair.processes == 8 and near.spent_s > 2 * far.spent_s


def test_what_is_loaded_again_is_part_of_the_time() -> None:
    """What ``auto`` makes, and the traced pass within limits; not what was asked for."""
    auto = simulate(World(GRAPH, loading_s=0.4), Goal(processes=None), 1)
    asked = simulate(World(GRAPH, loading_s=20.0), Goal(processes=8), 1)
    assert auto.pair.processes == asked.pair.processes == 8
    assert auto.spent_s < 48 and asked.spent_s < 48
    engine = SimpleNamespace(loading_s=0.0)
    now = [0.0]
    clock = RunClock(Goal(max_s=60.0), [engine], lambda: now[0])  # type: ignore[list-item]
    engine.loading_s, now[0] = 10.0, 15.0
    assert clock.spent() == 5.0
    assert clock.timing_left(traces=True) == 0.8 * 60 - 10 - 5
    assert clock.timing_left(traces=True, least=True) == 0.8 * 60 - 5
    clock.loading_counts(12.0)
    engine.loading_s, now[0] = 20.0, 30.0
    assert clock.spent() == 20.0  # ten seconds of loading are in it
    engine.loading_s, now[0] = 70.0, 80.0
    assert clock.spent() == 22.0 and not clock.late()  # two more, and not fifty
    now[0] += 50.0
    assert clock.late()


def test_auto_makes_many_processes_where_starting_is_cheap() -> None:
    goal = Goal(processes=None)
    cheap = simulate(replace(World(GRAPH), loading_s=0.1), goal, 1)
    dear = simulate(replace(World(GRAPH), loading_s=20.0), goal, 1)
    assert (cheap.pair.processes, dear.pair.processes) == (8, 1)


@pytest.mark.parametrize(("round_s", "rounds"), [(13.0, 1), (1.5, 3), (0.29, 16)])
def test_an_engine_alone_that_is_too_slow_for_five_rounds_keeps_the_time(
    round_s: float, rounds: int
) -> None:
    """Of 12 s, four fifths are for warm-up and timing; another engine comes after it."""
    now = [0.0]
    plan = SimpleNamespace(workload=SimpleNamespace(decode_len=64))
    runs = [
        SimpleNamespace(
            record=SimpleNamespace(engine_id=number), alive=True, plan=plan, loading_s=0.0,
            warmup_max_s=60.0, round_s=None, prefill_s=0.1, step_s=0.01, met_steps=None,
        )
        for number in range(2)
    ]  # fmt: skip
    made = []

    def one_round(run: object, index: int) -> None:
        made.append(index)
        now[0] += round_s

    goal = Goal(max_s=12.0)
    clock = RunClock(goal, runs, lambda: now[0])  # type: ignore[arg-type]
    timing = TimingPass(
        runs, goal, 0, clock, None, one_round, None, traces=True, adapt=False,  # type: ignore[arg-type]
    )  # fmt: skip
    timing.alone(runs[0])  # type: ignore[arg-type]
    assert len(made) == rounds


class Slow:
    """40 ms a step, on a clock of its own."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.now_ns = 10**9

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def reset(self) -> None:
        self.rounds.append(0)

    def prefill(self, prompt: object) -> list[int]:
        return [1]

    def decode_step(self) -> list[int]:
        self.now_ns += 40_000_000
        self.rounds[-1] += 1
        return [1]


@pytest.mark.parametrize(("round_s", "second"), [(0.5, 8), (None, 16)])
def test_warm_up_begins_with_a_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_s: float | None, second: int
) -> None:
    """64 steps would take 2.6 s: more than a round may take, or than warm-up has at all."""
    board, engine = StampBoard(tmp_path / "stamps", 64, create=True), Slow()
    monkeypatch.setattr("llmprof.worker.rounds.time", engine)
    limits = 0, 1.0
    done = warm_up(engine, [[1]], 64, board, *limits, lambda steps, stable: None, round_s)  # type: ignore[arg-type]
    board.close()
    assert engine.rounds[0] == 4 and engine.rounds[1] <= second
    assert done.steps == sum(engine.rounds) and done.step_ns == 40_000_000


class Planning(Slow):
    """45 ms more at each KV length that it meets for the first time; a step then takes 4 ms."""

    def __init__(self, prefill_ms: int = 0) -> None:
        super().__init__()
        self.met: set[int] = set()
        self.slow: list[list[int]] = []
        self.prefill_ns = prefill_ms * 1_000_000

    def reset(self) -> None:
        super().reset()
        self.slow.append([])

    def prefill(self, prompt: object) -> list[int]:
        self.now_ns += self.prefill_ns
        return [1]

    def decode_step(self) -> list[int]:
        self.now_ns += 4_000_000
        self.rounds[-1] += 1
        length = self.rounds[-1]
        if length not in self.met:
            self.now_ns += 45_000_000
            self.met.add(length)
            self.slow[-1].append(length)
        return [1]

    def monotonic_ns(self) -> int:
        return self.now_ns


def warmed(engine: Slow, steps: int, limits: tuple[int, float], monkeypatch, tmp_path, **how):
    board = StampBoard(tmp_path / "stamps", steps, create=True)
    monkeypatch.setattr("llmprof.worker.rounds.time", engine)
    found = warm_up(engine, [[1]], steps, board, *limits, lambda steps, stable: None, **how)  # type: ignore[arg-type]
    board.close()
    return found


@pytest.mark.parametrize("prefill_ms", [0, 6000])
def test_warm_up_meets_every_kv_length_of_a_given_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefill_ms: int
) -> None:
    """A second of warm-up has room for 20 plans; the timed rounds need 96."""
    engine = Planning(prefill_ms)
    done = warmed(engine, 96, (0, 1.0), monkeypatch, tmp_path, meet=True)
    assert engine.met == set(range(1, 97)) and engine.rounds[0] == 96
    assert done.met and done.met.steps == 96 and done.met.step_ns == 49_000_000
    assert done.met.decode_ns == 96 * 49_000_000
    if prefill_ms:
        assert engine.rounds == [96] and not done.stable  # another would take too long
    else:
        assert done.stable and done.step_ns == 4_000_000 and set(done.medians_ns) == {4_000_000}


def test_a_round_that_may_be_shorter_is_no_longer_than_what_can_be_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its pace 512 steps of 4 ms may be timed; their plans would take 23 s."""
    engine = Planning()
    done = warmed(engine, 512, (0, 1.0), monkeypatch, tmp_path, round_s=9.0, meet=True)
    assert engine.rounds[:2] == [4, 4] and engine.slow[1] == []
    assert done.met and done.met.steps == engine.rounds[2] == max(engine.met)
    assert done.met.steps >= 32 and done.met.decode_ns < 3.2e9
    assert done.step_ns == 4_000_000 and done.stable


def test_without_such_an_engine_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Slow()
    done = warmed(engine, 96, (0, 1.0), monkeypatch, tmp_path)
    assert done.met is None and engine.rounds[0] == 4 and max(engine.rounds) < 96


class Cold(Slow):
    """Its first steps load kernels: 90 ms each; later ones take 5 ms, a prefill 60 ms."""

    def prefill(self, prompt: object) -> list[int]:
        self.now_ns += 60_000_000
        return [1]

    def decode_step(self) -> list[int]:
        self.now_ns += 90_000_000 if sum(self.rounds) < 6 else 5_000_000
        self.rounds[-1] += 1
        return [1]


@pytest.mark.parametrize("round_s", [None, 4.0])
def test_rounds_of_warm_up_grow_again_where_only_the_first_steps_were_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_s: float | None
) -> None:
    """Else 208 steps are never made in the time: each short round has a prefill."""
    engine = Cold()
    done = warmed(engine, 64, (208, 0.8), monkeypatch, tmp_path, round_s=round_s)
    assert engine.rounds[0] == 4 and max(engine.rounds) == 64
    assert done.steps >= 208 and done.stable and done.step_ns == 5_000_000
    assert len(engine.rounds) < 8


def test_what_a_run_says_of_its_warm_up() -> None:
    info = EngineInfo(warmup_lengths="a plan a length")
    facts: dict = {"steps": 104, "stable": False, "step_ns": 4_000_000, "met": None, "lacking": 0}
    (text,) = warnings_of(facts, info, timed=True)
    assert text == "warm-up ended after 104 steps without a stable step time"
    (text,) = warnings_of({**facts, "lacking": 104}, info, timed=True)
    assert "ended 104 steps before the engine is as fast as it gets" in text
    facts |= {"stable": True, "met": {"steps": 96, "step_ns": 49_000_000, "decode_ns": 1}}
    (text,) = warnings_of(facts, info, timed=True)
    assert "49.0 ms in warm-up, later 4.0 ms" in text and text.endswith("a plan a length")
    facts["met"]["step_ns"] = 4_100_000
    assert warnings_of(facts, info, timed=True) == []
    assert warnings_of({**facts, "stable": False}, info, timed=False)[0].startswith("traced pass: ")
