"""The PM sampling tracer in its real child process, over a stub of CUPTI; and its arithmetic."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pm_stub
import pytest

from llmprof.records import Unavailable
from llmprof.tracers.copy_bandwidth import CopyBandwidth, measure_copy_bandwidth
from llmprof.tracers.pm import library as pm
from llmprof.tracers.pm.clock import HostReadings, place
from llmprof.tracers.pm.library import PmError
from llmprof.tracers.pm.sampler import explain
from llmprof.tracers.pm.tracer import PmSamples, PmTracer, permission, usable

MS = 1_000_000


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pm_stub.build(tmp_path_factory.mktemp("cupti"))


def sampled(tracer: PmTracer, seconds: float) -> PmSamples:
    """One round of at least that long."""
    assert tracer.start_round(seconds) is None
    time.sleep(seconds)
    samples = tracer.stop_round()
    assert isinstance(samples, PmSamples), samples
    return samples


def reason(found: object) -> str:
    assert isinstance(found, Unavailable)
    return found.reason


def test_a_round_gives_samples_on_the_monotonic_clock(library: str) -> None:
    tracer = PmTracer(0, 200_000, [library])
    assert tracer.probe() is None
    assert tracer.facts["uuid"] == "GPU-00112233-4455-6677-8899-aabbccddeeff"
    assert tracer.facts["trigger"] == "time"
    before = time.monotonic_ns()
    samples = sampled(tracer, 0.3)
    after = time.monotonic_ns()
    tracer.close()
    # More than one image of 1024 samples: reused at its end without a loss.
    assert len(samples.start_ns) >= 1400
    assert samples.interval_ns == pytest.approx(200_000, rel=0.01)
    assert (samples.gaps, samples.dropped, samples.overflow) == (0, 0, False)
    error = samples.clock.error_ns
    assert samples.clock.method == "cupti"
    assert error is not None
    assert before - error <= samples.start_ns[0] < samples.end_ns[-1] <= after + error
    assert set(samples.dram_pct) == {20.0, 80.0}
    np.testing.assert_array_equal(samples.dram_read_pct, samples.dram_pct / 2)
    assert set(samples.sm_active_pct) == {50.0}


def test_further_counters_are_there_or_have_a_reason(library: str) -> None:
    tracer = PmTracer(0, 200_000, [library], further=True)
    samples = sampled(tracer, 0.1)
    refused = tracer.facts["refused"]
    tracer.close()
    names = {"dram_write_pct", "l2_pct", "l2_hit_pct", "tensor_pct"}
    assert samples.further.keys() | refused.keys() == names
    assert not samples.further.keys() & refused.keys()
    assert all(len(column) == len(samples.start_ns) for column in samples.further.values())
    assert all(refused.values())
    assert set(samples.dram_pct) == {20.0, 80.0}


def test_rounds_share_one_process_and_start_empty(library: str) -> None:
    tracer = PmTracer(0, 1_000_000, [library])
    first = sampled(tracer, 0.05)
    pid = tracer.pid
    second = sampled(tracer, 0.05)
    assert tracer.pid == pid
    assert second.start_ns[0] > first.end_ns[-1]
    tracer.close()
    tracer.close()
    assert "not started" in reason(tracer.stop_round())


def test_a_round_longer_than_expected_keeps_every_sample(library: str) -> None:
    tracer = PmTracer(0, 50_000, [library])
    assert tracer.start_round(0.001) is None
    time.sleep(0.2)
    samples = tracer.stop_round()
    tracer.close()
    assert isinstance(samples, PmSamples)
    assert len(samples.start_ns) >= 3900
    assert samples.gaps == 0


def test_a_raw_gpu_clock_is_corrected_within_the_bound(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPROF_STUB_SKEW_NS", str(-3600 * 1000 * MS))
    tracer = PmTracer(0, 200_000, [library])
    samples = sampled(tracer, 0.1)
    tracer.close()
    clock = samples.clock
    assert clock.method == "bounds"
    assert clock.error_ns is not None
    assert abs(clock.correction_ns - 3600 * 1000 * MS) <= clock.error_ns


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("segv-open", "the PM sampler process was killed by SIGSEGV"),
        ("privileges", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("busy", "another profiler holds"),
        ("chip", "no PM sampling of DRAM and SM activity on STUB100"),
    ],
)
def test_why_it_cannot_work(
    library: str, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.setenv("LLMPROF_STUB_CUPTI", words)
    tracer = PmTracer(0, libraries=[library])
    assert said in reason(tracer.probe())
    assert said in reason(tracer.start_round(1.0))
    assert said in reason(tracer.stop_round())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (pm.MIG, "no PM sampling on a MIG device: it needs a whole GPU"),
        (pm.WSL, "no PM sampling on WSL: it needs a whole GPU"),
        (pm.VIRTUALIZED, "no PM sampling on a vGPU: it needs a whole GPU"),
        (pm.HARDWARE_BUSY, "another profiler holds this GPU's performance counters"),
        (pm.PRIVILEGES, "--cap-add SYS_ADMIN"),
    ],
)
def test_what_to_do_where_counters_cannot_be_had(code: int, said: str) -> None:
    text = explain(PmError("cuptiPmSamplingEnable", code, "refused"), "GH100")
    assert said in text
    assert "\n" not in text


def test_a_crash_while_sampling_ends_only_the_tracer(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPROF_STUB_CUPTI", "segv-stop")
    tracer = PmTracer(0, libraries=[library])
    assert tracer.start_round(0.1) is None
    assert reason(tracer.stop_round()) == "the PM sampler process was killed by SIGSEGV"
    assert "SIGSEGV" in reason(tracer.start_round(0.1))


def test_a_sampler_that_is_killed_is_named(library: str) -> None:
    tracer = PmTracer(0, libraries=[library])
    assert tracer.start_round(0.1) is None
    assert tracer.pid is not None
    os.kill(tracer.pid, signal.SIGKILL)
    assert "killed by SIGKILL" in reason(tracer.stop_round())


def test_the_next_library_is_tried_after_one_that_is_broken(library: str, tmp_path: Path) -> None:
    broken = tmp_path / "libcupti.so.13"
    for name in ("libcupti.so.13", "libnvperf_host.so", "libnvperf_target.so"):
        (tmp_path / name).write_bytes(b"")
    tracer = PmTracer(0, libraries=[str(broken), library])
    assert tracer.probe() is None


def test_a_missing_companion_is_named(tmp_path: Path) -> None:
    tracer = PmTracer(0, libraries=[str(tmp_path / "libcupti.so.13")])
    assert f"libnvperf_host.so is missing in {tmp_path}" in reason(tracer.probe())
    assert "libcupti was not found" in reason(PmTracer(0, libraries=[]).probe())


def test_a_chip_without_the_read_metric_has_nan_there(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPROF_STUB_CUPTI", "no-read")
    tracer = PmTracer(0, 1_000_000, [library])
    samples = sampled(tracer, 0.05)
    tracer.close()
    assert np.isnan(samples.dram_read_pct).all()
    assert not np.isnan(samples.dram_pct).any()


def test_a_chip_without_time_trigger_tells_its_own_interval(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPROF_STUB_CUPTI", "no-time old overflow")
    tracer = PmTracer(0, 1_000_000, [library])
    samples = sampled(tracer, 0.1)
    assert tracer.facts["trigger"] == "sysclk"
    tracer.close()
    assert (samples.interval_ns, samples.requested_interval_ns) == (2_000_000, 1_000_000)
    assert samples.overflow


def test_no_device_of_that_number(library: str) -> None:
    assert "there is no CUDA device 7" in reason(PmTracer(7, libraries=[library]).probe())


def test_administrators_only(tmp_path: Path) -> None:
    parameters, status = tmp_path / "params", tmp_path / "status"
    parameters.write_text("ResmanDebugLevel: 4294967295\nRmProfilingAdminOnly: 1\n")
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    assert "RmProfilingAdminOnly" in reason(permission(parameters, status))
    status.write_text("CapEff:\t000001ffffffffff\n")
    assert permission(parameters, status) is None
    assert permission(tmp_path / "absent", status) is None


def test_a_library_newer_than_the_driver_is_left_out() -> None:
    names = ["/a/libcupti.so.13", "/b/libcupti.so.12", "libcupti.so.12", "/c/libcupti.so"]
    assert usable(names, 12040) == names[1:]


WALL = 1_800_000_000 * 1000 * MS
"""CLOCK_REALTIME where CLOCK_MONOTONIC is 0."""


def readings(**changes: object) -> HostReadings:
    """Samples of 0.2 ms from 10.0 to 20.0 ms on CLOCK_MONOTONIC fit these."""
    values: dict[str, object] = {
        "clocks": [[WALL + 5 * MS, 5 * MS, 100], [WALL + 25 * MS, 25 * MS, 100]],
        "started": (9_900_000, 10_050_000),
        "stopped": (20_100_000, 20_300_000),
        "decodes": [[20_400_000, WALL + 20 * MS]],
    }
    return HostReadings(**{**values, **changes})  # type: ignore[arg-type]


def test_the_clocks_bound_comes_from_start_and_stop() -> None:
    start = WALL + np.arange(10 * MS, 20 * MS, 200_000)
    placed, _, clock = place(start, start + 200_000, 200_000, readings())
    assert clock.method == "cupti"
    assert placed[0] == 10 * MS
    # Start was entered 0.1 ms before the first sample; Stop returned 0.3 ms after the last one.
    assert (clock.low_ns, clock.high_ns) == (-100_000, 300_000)
    assert clock.error_ns == 300_000 + 100


def test_samples_lost_at_the_end_do_not_move_the_others() -> None:
    start = WALL + np.arange(10 * MS, 20 * MS, 200_000)
    lost = readings(stopped=(25 * MS, 26 * MS))
    _, _, clock = place(start, start + 200_000, 200_000, lost)
    assert (clock.method, clock.error_ns) == ("cupti", 400_000 + 100)


def test_a_drift_of_the_wall_clock_is_followed() -> None:
    start = WALL + np.arange(10 * MS, 20 * MS, 200_000)
    clocks = [[WALL + 5 * MS, 5 * MS, 100], [WALL + 25 * MS + 4000, 25 * MS, 100]]
    placed, _, _ = place(start, start + 200_000, 200_000, readings(clocks=clocks))
    assert placed[0] == 10 * MS - 1000


def test_contradicting_bounds_leave_the_error_unknown() -> None:
    start = WALL + np.arange(10 * MS, 20 * MS, 200_000)
    late = readings(started=(12 * MS, 12 * MS))
    _, _, clock = place(start, start + 200_000, 200_000, late)
    assert (clock.method, clock.error_ns) == ("contradiction", None)


def with_stub_driver(library: str, monkeypatch: pytest.MonkeyPatch, **set_to: str) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(Path(library).parent))
    for name, value in set_to.items():
        monkeypatch.setenv(f"LLMPROF_STUB_{name}", value)


def test_a_copy_counts_bytes_read_and_written(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_stub_driver(library, monkeypatch, COPY_GB_S="2500")
    found = measure_copy_bandwidth(0)
    assert isinstance(found, CopyBandwidth)
    assert found.gb_s == pytest.approx(2500, rel=1e-3)
    assert found.buffer_bytes == 512 << 20  # a quarter of the 2 GiB that are free


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("none", "cuInit: no CUDA-capable device is detected (100)"),
        ("full", "1024 MiB of free GPU memory"),
        ("segv", "the copy measurement process was killed by SIGSEGV"),
    ],
)
def test_why_there_is_no_copy(
    library: str, monkeypatch: pytest.MonkeyPatch, mode: str, said: str
) -> None:
    with_stub_driver(library, monkeypatch, CUDA=mode)
    assert said in reason(measure_copy_bandwidth(0))
