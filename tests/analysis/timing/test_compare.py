"""Ratios, verdicts and token agreement."""

from __future__ import annotations

import pytest
from rundata_factory import (
    decode_round,
    engine,
    engine_info,
    run_data,
    run_info,
    two_engines,
    workload,
)

from llmprof.analysis.timing.agreement import agreement, determinism
from llmprof.analysis.timing.compare import (
    compare_all,
    compare_engines,
    compare_runs,
    compare_to_first,
)
from llmprof.errors import UsageError
from llmprof.records import GpuDevice, RunData, Unavailable


def test_pairs_cancel_drift_that_both_engines_share() -> None:
    (pair,) = compare_to_first(two_engines(3.0))
    assert pair.paired
    assert pair.rounds == 8
    assert pair.difference_seen
    assert pair.tok_s_ratio.value == pytest.approx(3.0, rel=2e-3)
    # The rounds drift by 35 %, the ratio does not.
    assert isinstance(pair.tok_s_ratio.low, float)
    assert isinstance(pair.tok_s_ratio.high, float)
    assert pair.tok_s_ratio.high - pair.tok_s_ratio.low < 0.03
    assert pair.verdict.startswith("llamacpp is 3.00× as fast as torch (95 %: ")


def test_the_faster_engine_is_the_subject() -> None:
    (pair,) = compare_to_first(two_engines(0.5))
    assert pair.tok_s_ratio.value == pytest.approx(0.5, rel=2e-3)
    assert pair.verdict.startswith("torch is 2.00× as fast as llamacpp (95 %: ")


def test_a_difference_below_the_floor_is_none() -> None:
    rounds = []
    for index in range(8):
        rounds += [decode_round(0, index, [10] * 4), decode_round(1, index, [10.03] * 4)]
    (pair,) = compare_to_first(run_data([engine(0, "torch"), engine(1, "torch#2")], rounds))
    assert isinstance(pair.tok_s_ratio.high, float)
    assert pair.tok_s_ratio.high < 1
    assert not pair.difference_seen
    assert pair.verdict == "torch and torch#2 are the same within 1.4 % (95 %: 0.997–0.997)"
    assert (pair.outcome, pair.allowance) == ("same", pytest.approx(0.01))


def test_noise_around_one_is_no_difference() -> None:
    rounds = []
    for index, noise in enumerate((0.9, 1.1, 0.95, 1.05, 1.02, 0.98, 1.1, 0.9)):
        rounds += [decode_round(0, index), decode_round(1, index, [10 * noise] * 4)]
    (pair,) = compare_to_first(run_data([engine(0, "a"), engine(1, "b")], rounds))
    assert not pair.difference_seen
    assert pair.outcome == "inconclusive"
    assert pair.verdict.startswith("inconclusive: b / a is 1.00× (95 %: 0.9")
    assert pair.verdict.endswith(" more would tell")
    assert isinstance(pair.needed_s, float) and pair.needed_s > 0


def test_too_few_rounds_give_a_ratio_without_a_verdict() -> None:
    (pair,) = compare_to_first(two_engines(3.0, rounds=2))
    assert pair.tok_s_ratio.value == pytest.approx(3.0, rel=1e-2)
    assert not pair.difference_seen
    assert "2 rounds: an interval needs at least 5" in pair.verdict


def test_only_rounds_complete_in_both_are_paired() -> None:
    data = two_engines()
    data.rounds[0].complete = False
    (pair,) = compare_to_first(data)
    assert pair.rounds == 7


def test_an_engine_without_rounds_cannot_be_compared() -> None:
    data = two_engines()
    data.engines.append(engine(2, "exllamav2", state="failed"))
    pair = compare_to_first(data)[1]
    assert isinstance(pair.tok_s_ratio.value, Unavailable)
    assert "exllamav2 has no complete timing round" in pair.verdict
    assert len(compare_all(data)) == 3
    assert compare_to_first(run_data([], [])) == ()


def test_blocks_are_not_paired_and_say_so() -> None:
    data = two_engines()
    data.info = run_info(schedule="blocks")
    pair = compare_engines(data, data.engines[0], data.engines[1])
    assert not pair.paired
    assert "one after the other" in pair.warnings[0]
    assert pair.tok_s_ratio.value == pytest.approx(3.0, rel=1e-2)


def test_two_runs_of_one_workload() -> None:
    found = compare_runs(two_engines(), "torch", two_engines(), "torch")
    assert (found.a, found.b) == ("torch (A)", "torch (B)")
    assert found.tok_s_ratio.value == 1
    assert not found.difference_seen
    with pytest.raises(UsageError, match="its engines: torch, llamacpp"):
        compare_runs(two_engines(), "mlc", two_engines(), "torch")


def other_workload(**changes: int) -> RunData:
    data = two_engines()
    data.info = run_info(workload=workload(**changes).to_dict())
    return data


def on_gpus(*names: str, limit_w: float = 700.0, driver: str = "580.1", cuda: str = "") -> RunData:
    data = two_engines()
    numbers = ",".join(str(n) for n in range(len(names)))
    for one in data.engines:
        one.info = engine_info(device=cuda or f"cuda:{numbers}")
    data.gpu_devices = [
        GpuDevice(n, name, f"GPU-{n}", power_limit_w=limit_w) for n, name in enumerate(names)
    ]
    data.info = run_info(environment={"driver": driver})
    return data


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (on_gpus("H100"), ()),
        (on_gpus("H200"), ("torch (A) ran on H100, torch (B) on H200: the ratio is of",)),
        (on_gpus("H100", "H100"), ("torch (A) ran on H100, torch (B) on 2 × H100",)),
        (on_gpus("H100", limit_w=450), ("limit of the GPU was 700 W for torch (A), 450 W",)),
        (on_gpus("H100", driver="570"), ("drivers differ: 580.1 for torch (A), 570 for torch",)),
        (on_gpus("H100", cuda="cuda:4"), ()),  # a GPU that nothing is known of
    ],
)
def test_what_differs_of_the_machines_is_told(other: RunData, told: tuple[str, ...]) -> None:
    found = compare_runs(on_gpus("H100"), "torch", other, "torch")
    assert len(found.warnings) == len(told) + 1
    assert all(text in line for text, line in zip(told, found.warnings, strict=False))


def test_runs_of_different_cpus_are_told_apart() -> None:
    one, two = two_engines(), two_engines()
    for data, model in ((one, "EPYC"), (two, "Xeon")):
        data.info = run_info(environment={"cpu": {"model": model, "usable_cores": 2}})
    (told, _) = compare_runs(one, "torch", two, "torch").warnings
    assert "torch (A) ran on EPYC (2 cores), torch (B) on Xeon (2 cores)" in told


def test_runs_of_different_workloads_need_force() -> None:
    other = other_workload(prompt_len=99)
    found = compare_runs(two_engines(), "torch", other, "llamacpp")
    assert isinstance(found.tok_s_ratio.value, Unavailable)
    assert "prompt 10 · decode 4" in found.verdict
    forced = compare_runs(two_engines(), "torch", other, "llamacpp", force=True)
    assert forced.difference_seen
    assert any("prompt 99" in warning for warning in forced.warnings)
    ids = compare_runs(two_engines(), "torch", other_workload(seed=9), "torch")
    assert "different prompt ids" in ids.verdict


def with_tokens(a: list[list[int]], b: list[list[int]], weights: str | None = "w") -> RunData:
    info = engine_info(weights_id=weights)
    rounds = [decode_round(0, 0, tokens=a), decode_round(1, 0, tokens=b)]
    return run_data([engine(0, "torch", info=info), engine(1, "llamacpp", info=info)], rounds)


def test_agreement_counts_prefix_and_positions() -> None:
    data = with_tokens([[1, 2, 3, 4]], [[1, 2, 9, 4]])
    found = agreement(data, *data.engines)
    assert (found.common_prefix, found.agreement, found.length, found.rounds) == (2, 0.75, 4, 1)


def test_agreement_of_a_batch_is_that_of_its_worst_sequence() -> None:
    data = with_tokens([[1, 2], [3, 4]], [[1, 2], [5, 4]])
    found = agreement(data, *data.engines)
    assert (found.common_prefix, found.agreement) == (0, 0.75)


def test_agreement_needs_the_same_weights() -> None:
    data = with_tokens([[1]], [[1]], weights=None)
    found = agreement(data, *data.engines).common_prefix
    assert isinstance(found, Unavailable)
    assert "random" in found.reason


def test_determinism_over_own_rounds() -> None:
    record = engine(0, "torch")
    same = run_data([record], [decode_round(0, 0), decode_round(0, 1)])
    assert determinism(same, record).repeats is True
    last = decode_round(0, 2, tokens=[[5, 6, 0, 8, 9]])
    found = determinism(run_data([record], [*same.rounds, last]), record)
    assert (found.repeats, found.common_prefix, found.rounds) == (False, 2, 3)
    assert isinstance(determinism(run_data([record], []), record).repeats, Unavailable)
