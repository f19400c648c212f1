"""Bandwidth, modelled and measured, and the conditions of a GPU while an engine decodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rundata_factory import (
    H100,
    decode_round,
    engine,
    engine_info,
    gpu_sample,
    run_data,
    run_info,
    two_engines,
    workload,
)

from llmprof.analysis.bandwidth.roofline import Bandwidth, bandwidth
from llmprof.analysis.timing.conditions import (
    Conditions,
    condition_warnings,
    conditions,
)
from llmprof.analysis.timing.steps import engine_steps
from llmprof.records import EngineInfo, Missing, RunData, Unavailable

ON_GPU = engine_info(device="cuda:0", weight_bytes_per_step=16_000_000_000)


def roof(data: RunData) -> Bandwidth:
    return bandwidth(data, data.engines[0], engine_steps(data, data.engines[0]))


def one_engine(about: EngineInfo, **changes: object) -> RunData:
    return run_data([engine(0, "torch", info=about)], [decode_round(0, 0)], **changes)


def test_modelled_bytes_are_weights_and_kv_at_the_mean_context() -> None:
    found = roof(one_engine(engine_info()))
    # prompt 10, 4 steps: positions 11, 12, 13, 14 → 12.5 in the mean
    assert found.bytes_per_step == 1_000_000 + 1_000 * 12.5
    assert found.modelled_gb_s == pytest.approx(1_012_500 / 10e6)


def test_gb_s_and_tok_s_of_a_row_are_of_the_same_time() -> None:
    """A step of 40 ms among three of 10 ms is in both, or in neither."""
    rounds = [decode_round(0, 0, [10, 10, 40, 10])]
    for batch in (1, 3):
        info = run_info(workload=workload(batch=batch).to_dict())
        data = run_data([engine(0, "torch", info=engine_info())], rounds, info=info)
        steps = engine_steps(data, data.engines[0])
        found = bandwidth(data, data.engines[0], steps)
        steps_s = steps.tok_s.value / batch
        assert steps_s == pytest.approx(4 / 0.07)
        assert found.modelled_gb_s == pytest.approx(found.bytes_per_step * steps_s / 1e9)


def test_a_cpu_has_no_peak_unless_a_copy_was_measured() -> None:
    found = roof(one_engine(engine_info()))
    assert isinstance(found.peak_gb_s, Unavailable)
    assert found.peak_gb_s.reason.startswith("no peak known for a CPU")
    assert found.modelled_share == found.peak_gb_s
    info = run_info(environment={"copy_gb_s": {"cpu": 20.25}})
    copied = roof(one_engine(engine_info(), info=info))
    assert copied.modelled_share == pytest.approx(0.005)
    assert copied.peak_source.startswith("measured")


def test_share_of_the_peak_of_a_gpu() -> None:
    found = roof(one_engine(ON_GPU, gpu_devices=[H100]))
    assert found.peak_gb_s == pytest.approx(3352.32)
    assert found.modelled_share == pytest.approx(1600 / 3352.32, rel=1e-3)
    assert isinstance(found.measured_gb_s, Unavailable)


def test_a_gpu_without_a_peak_says_what_nvml_said() -> None:
    data = one_engine(ON_GPU, gpu_devices=[replace(H100, bus_width_bits=None)])
    data.missing = [
        Missing("gpu0", "nvml.power_w", "Not Supported"),
        Missing("gpu0", "device.bus_width_bits", "no permission"),
    ]
    assert roof(data).peak_gb_s == Unavailable("no permission")


def test_measured_bandwidth_uses_settled_samples_of_decoding_only() -> None:
    record = decode_round(0, 0, [100] * 4)  # decodes from 20 ms to 420 ms
    samples = [
        gpu_sample(10, gpm_dram_bw_pct=90.0),  # prefill
        gpu_sample(60, gpm_dram_bw_pct=90.0),  # covers prefill too
        gpu_sample(260, gpm_dram_bw_pct=30.0),
        gpu_sample(300, gpm_dram_bw_pct=50.0),
        gpu_sample(310),
        gpu_sample(350, gpm_dram_bw_pct=99.0, device=1),
        gpu_sample(500, gpm_dram_bw_pct=0.0),  # idle
    ]
    data = run_data([engine(0, "t", info=ON_GPU)], [record], gpu_samples=samples)
    data.gpu_devices = [H100]
    found = roof(data)
    assert found.measured_share == pytest.approx(0.4)
    assert found.measured_gb_s == pytest.approx(0.4 * 3352.32)
    data.gpu_samples = samples[:2]
    short = roof(data).measured_share
    assert isinstance(short, Unavailable)
    assert "0.2 s" in short.reason


@pytest.mark.parametrize("field", ["weight_bytes_per_step", "kv_bytes_per_token"])
def test_unknown_sizes_are_not_guessed(field: str) -> None:
    found = roof(one_engine(engine_info(**{field: None})))
    assert isinstance(found.modelled_gb_s, Unavailable)
    assert "does not know" in found.modelled_gb_s.reason


def gpu_run(clocks: tuple[int, int], mask: int = 0) -> RunData:
    """Two engines on GPU 0; round 0 of engine 0 decodes 20–60 ms, of engine 1 520–560 ms."""
    data = two_engines(1.0, rounds=1)
    for record in data.engines:
        record.info = ON_GPU
    data.gpu_samples = [
        gpu_sample(30, sm_clock_mhz=clocks[0], temperature_c=50, throttle_mask=mask),
        gpu_sample(40, sm_clock_mhz=clocks[0], temperature_c=60, throttle_mask=0x1),
        gpu_sample(300, sm_clock_mhz=345, throttle_mask=0x1),
        gpu_sample(530, sm_clock_mhz=clocks[1], throttle_mask=0),
    ]
    return data


def warnings_of(data: RunData) -> list[str]:
    seen = [(e.label, conditions(data, e)) for e in data.engines]
    return [f"{w.scope}: {w.text}" for w in condition_warnings(seen)]


def test_conditions_are_those_while_decoding() -> None:
    data = gpu_run((1980, 1980))
    found = conditions(data, data.engines[0])
    assert isinstance(found, Conditions)
    assert found.samples == 2
    assert found.sm_clock_mhz is not None
    assert found.sm_clock_mhz.min == 1980  # not the idle clock between the rounds
    assert found.temperature_c is not None
    assert (found.temperature_c.min, found.temperature_c.max) == (50, 60)
    assert found.power_w is None
    assert found.throttle == ()
    assert warnings_of(data) == []


def test_throttling_and_clock_drift_are_warnings() -> None:
    lines = warnings_of(gpu_run((1980, 1700), mask=0x4 | 0x20))
    assert lines == [
        "torch: the GPU throttled while decoding: power cap in 50%, software thermal slowdown in "
        "50% of samples",
        "run: SM clocks of GPU 0 drifted: llamacpp decoded at 1700 MHz, torch at 1980 MHz "
        "(medians)",
    ]


def test_no_conditions_on_a_cpu_or_without_samples() -> None:
    data = two_engines()
    assert isinstance(conditions(data, data.engines[0]), Unavailable)
    data.engines[0].info = ON_GPU
    found = conditions(data, data.engines[0])
    assert found == Unavailable("no NVML sample of GPU 0 while torch decoded")
