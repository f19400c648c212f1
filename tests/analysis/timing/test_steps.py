"""Rates, latencies, energy and slowdown from stamps that are known."""

from __future__ import annotations

import pytest
from rundata_factory import (
    MS,
    decode_round,
    engine,
    engine_info,
    run_data,
    run_info,
    workload,
)

from llmprof.analysis.timing.stats import Distribution
from llmprof.analysis.timing.steps import RUNS_FREE, EngineSteps, engine_steps
from llmprof.records import EngineRecord, Missing, RoundRecord, Unavailable


def steps_of(
    rounds: list[RoundRecord], record: EngineRecord | None = None, **changes: object
) -> EngineSteps:
    record = record or engine(0, "torch")
    return engine_steps(run_data([record], rounds, **changes), record)


def test_rates_of_known_stamps() -> None:
    found = steps_of([decode_round(0, i, [10, 20, 10, 10], ttft_ms=25) for i in range(5)])
    assert found.tok_s.value == pytest.approx(4 / 0.050)
    assert found.ttft_ms.value == 25
    assert found.prefill_tok_s.value == pytest.approx(10 / 0.025)
    assert found.step_ns == 10 * MS
    assert isinstance(found.itl_ms, Distribution)
    assert (found.itl_ms.count, found.itl_ms.p50, found.itl_ms.max) == (20, 10, 20)
    assert found.tok_s.low == found.tok_s.high == found.tok_s.value


def test_the_rate_is_the_median_over_rounds() -> None:
    found = steps_of([decode_round(0, i, [ms] * 4) for i, ms in enumerate((10, 10, 40))])
    assert found.tok_s.value == pytest.approx(100)
    assert found.tok_s.low == Unavailable("3 rounds: an interval needs at least 5")


def test_a_batch_makes_a_token_for_every_sequence() -> None:
    info = run_info(workload=workload(batch=3).to_dict())
    found = steps_of([decode_round(0, 0)], info=info)
    assert found.tok_s.value == pytest.approx(300)
    assert found.prefill_tok_s.value == pytest.approx(10 * 3 / 0.020)


def test_an_incomplete_round_keeps_its_steps_but_not_its_rate() -> None:
    cut = decode_round(0, 1, [100, 100], complete=False)
    found = steps_of([decode_round(0, 0), cut])
    assert found.tok_s.samples == pytest.approx((100,))
    assert isinstance(found.itl_ms, Distribution)
    assert (found.itl_ms.count, found.itl_ms.max) == (6, 100)
    assert [r.complete for r in found.rounds] == [True, False]
    alone = steps_of([cut])
    assert alone.tok_s.value == Unavailable("the round ended early, after 2 decode steps")
    assert isinstance(alone.itl_ms, Distribution)


def test_an_engine_that_runs_free_has_rates_but_no_itl() -> None:
    rounds = []
    for i in range(2):
        issued = decode_round(0, i, [1, 1, 1, 1], synchronous=False)
        issued.end_ns = issued.stamps_ns[0] + 40 * MS
        rounds.append(issued)
    found = steps_of(rounds, engine(0, "mlc", info=engine_info(synchronous=False)))
    assert found.itl_ms == Unavailable(RUNS_FREE)
    assert found.tok_s.value == pytest.approx(100)
    assert found.step_ns == pytest.approx(10 * MS)


def test_slowdown_compares_the_same_positions() -> None:
    timing = [decode_round(0, i, [10, 10, 30, 30, 30]) for i in range(3)]
    traced = decode_round(0, 0, [12, 12], start_ms=9000, pass_name="traced")
    found = steps_of([*timing, traced]).slowdown
    assert found.ratio == pytest.approx(1.2)
    assert (found.traced_steps, found.traced_step_ns) == (2, 12 * MS)
    assert steps_of(timing).slowdown.ratio == Unavailable("no traced pass")


def test_energy_per_token() -> None:
    gpu = engine(0, "torch", info=engine_info(device="cuda:0"))
    rounds = [
        decode_round(0, 0, energy_mj=(1000, 9000)),
        decode_round(0, 1, energy_mj=(9000, 21000)),
        decode_round(0, 2, [10], complete=False, energy_mj=(21000, 90000)),
    ]
    assert steps_of(rounds, gpu).joule_per_token == pytest.approx(20 / 8)


def test_energy_that_is_not_there_says_why() -> None:
    gpu = engine(0, "torch", info=engine_info(device="cuda:0"))
    assert steps_of([decode_round(0, 0)]).joule_per_token == Unavailable(
        "energy comes from NVML, which covers GPUs only"
    )
    stuck = steps_of([decode_round(0, 0, energy_mj=(5, 5))], gpu).joule_per_token
    assert isinstance(stuck, Unavailable)
    assert "did not advance" in stuck.reason
    missing = [Missing("gpu0", "nvml.energy_mj", "Not Supported")]
    found = steps_of([decode_round(0, 0)], gpu, missing=missing)
    assert found.joule_per_token == Unavailable("Not Supported")


def test_nothing_measured_is_unavailable_everywhere() -> None:
    found = steps_of([], engine(0, "torch", state="failed"))
    for value in (found.tok_s.value, found.ttft_ms.low, found.itl_ms, found.step_ns):
        assert value == Unavailable("torch failed before a decode step was timed")


def test_a_file_without_a_workload_has_no_prefill_rate() -> None:
    found = steps_of([decode_round(0, 0)], info=run_info(workload={}))
    assert found.tok_s.value == pytest.approx(100)
    assert isinstance(found.prefill_tok_s.value, Unavailable)
