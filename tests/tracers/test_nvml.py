"""The NVML tracer against a shared library that answers from a script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvml_stub
import pytest
from nvml_stub import H100

from llmprof.records.throttle import reason_names, throttle_names
from llmprof.tracers.nvml.tracer import _between

# Samples until enough of them came or no device is left; a loaded machine only takes longer.
TRACE = """
import dataclasses, json, sys, threading
from llmprof.records import Unavailable
from llmprof.tracers.nvml.tracer import NvmlTracer

wanted, use = json.loads(sys.argv[1]), json.loads(sys.argv[2])
samples, warnings, enough = [], [], threading.Event()

def take(new):
    samples.extend(new)
    if len(samples) >= wanted["samples"] and (
        sum(s.gpm_dram_bw_pct is not None for s in samples) >= wanted.get("gpm", 0)
    ):
        enough.set()

def warn(scope, text):
    warnings.append([scope, text])
    if wanted.get("until_warning"):
        enough.set()

tracer = NvmlTracer(interval_s=0.005, on_samples=take, on_warning=warn)
reason = tracer.probe()
result = {"probe": reason.reason if isinstance(reason, Unavailable) else None}
devices = tracer.devices()
result["devices"] = [dataclasses.asdict(d) | {"peak": d.peak_bandwidth_gb_s} for d in devices]
if use is not None:
    tracer.use(use)
tracer.start()
if result["devices"]:
    result["energy"] = [tracer.energy_mj(0), tracer.energy_mj(0)]
    result["enough"] = enough.wait(60)
    last = samples[-1].timestamp_ns if samples else 0
    result["between"] = tracer.energy_between(0, last, last + 1000)
tracer.stop()
tracer.stop()
result["missing"] = [dataclasses.astuple(m) for m in tracer.missing()]
result["samples"] = [dataclasses.asdict(s) for s in samples]
result["warnings"] = warnings
print(json.dumps(result))
"""

Trace = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_stub.build(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def trace(library: Path, tmp_path: Path) -> Trace:
    def run(
        scenario: str,
        *,
        use: list[int] | None = None,
        env: dict[str, str] | None = None,
        **wanted: Any,
    ) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", TRACE, json.dumps({"samples": 3, **wanted}), json.dumps(use)],
            env=nvml_stub.environment(library, tmp_path, scenario, **(env or {})),
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def reasons(result: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(scope, name): reason for scope, name, reason in result["missing"]}


def without(scenario: str, *keys: str) -> str:
    lines = scenario.splitlines(keepends=True)
    return "".join(line for line in lines if not any(f"gpu 0 {key} " in line for key in keys))


def second_gpu(name: str = "NVIDIA H100 80GB HBM3") -> str:
    lines = [line for line in H100.splitlines(keepends=True) if line.startswith("gpu 0")]
    text = "".join(lines).replace("gpu 0", "gpu 1").replace("11111111", "22222222")
    return text.replace("name NVIDIA H100 80GB HBM3", f"name {name}")


@pytest.mark.parametrize(
    ("said", "each"),
    [
        ("nvlink_mbps 26562", 26.562),
        ("nvlink_common_mbps 25781", 25.781),  # the driver is older
        ("nvlink_version 6", 25.0),  # it says no rate at all
    ],
)
def test_nvlink_is_the_rate_of_all_active_links(trace: Trace, said: str, each: float) -> None:
    result = trace(H100 + f"gpu 0 nvlinks 12\ngpu 0 {said}\n")
    assert result["devices"][0]["nvlink_gb_s"] == pytest.approx(12 * each)


def test_an_nvlink_rate_that_is_refused_is_said(trace: Trace) -> None:
    refused = trace(H100 + "gpu 0 nvlinks 12\n")
    assert refused["devices"][0]["nvlink_gb_s"] is None
    assert "device.nvlink_gb_s" in [row[1] for row in refused["missing"]]


def test_device_facts_and_samples(trace: Trace) -> None:
    result = trace(H100 + "gpu 0 sm_count 132\n")
    assert result["probe"] is None
    (device,) = result["devices"]
    assert device["name"] == "NVIDIA H100 80GB HBM3"
    assert device["uuid"] == "GPU-11111111-aaaa-bbbb-cccc-000000000000"
    assert device["pci_bus_id"] == "00000000:04:00.0"
    assert (device["sm_count"], device["compute_capability"]) == (132, [9, 0])
    assert (device["power_limit_w"], device["memory_total_mib"]) == (700.0, 81559.0)
    assert device["peak"] == pytest.approx(3352.3, abs=0.1)
    assert device["nvlink_gb_s"] is None  # no link is active, and nothing is missing
    first = result["samples"][0]
    assert (first["sm_clock_mhz"], first["mem_clock_mhz"]) == (1980, 2619)
    assert (first["power_w"], first["temperature_c"]) == (431.25, 58)
    assert (first["gpu_util_pct"], first["mem_util_pct"]) == (97.0, 31.0)
    assert (first["throttle_mask"], first["memory_used_mib"]) == (0, 5000.0)
    assert result["energy"][0] in (1000000, 1250000)  # the loop reads it too
    assert result["between"][0] <= result["between"][1]
    assert not result["missing"]
    stamps = [sample["timestamp_ns"] for sample in result["samples"]]
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize(
    ("cores", "capability", "count"),
    [("16896", "9 0", 132), ("6912", "8 0", 108), ("16897", "9 0", None), ("100", "99 0", None)],
)
def test_multiprocessors_follow_from_cores(
    trace: Trace, cores: str, capability: str, count: int | None
) -> None:
    """Where NVML has attributes for MIG devices alone, which is most drivers."""
    scenario = without(H100, "compute_capability")
    scenario += f"gpu 0 cores {cores}\ngpu 0 compute_capability {capability}\n"
    result = trace(scenario)
    assert result["devices"][0]["sm_count"] == count
    assert (("gpu0", "device.sm_count") in reasons(result)) == (count is None)


def test_changes_are_seen_in_order(trace: Trace) -> None:
    scenario = without(H100, "sm_clock", "reasons") + (
        "gpu 0 sm_clock 1980 1650 1200\ngpu 0 reasons 0 0x4 0x44\n"
    )
    seen = trace(scenario, samples=4)["samples"]
    assert [s["sm_clock_mhz"] for s in seen[:4]] == [1980, 1650, 1200, 1200]
    assert [s["throttle_mask"] for s in seen[:3]] == [0, 4, 0x44]


def test_costly_calls_stay_out_of_the_loop(trace: Trace, tmp_path: Path) -> None:
    trace(H100, samples=5)
    calls = nvml_stub.calls_of(tmp_path)
    assert calls["nvmlDeviceGetMaxClockInfo"] == 2  # SM and memory
    assert calls["nvmlDeviceGetTotalEnergyConsumption"] <= 5  # 4 ms each: five a second
    assert calls["nvmlDeviceGetPowerUsage"] >= 5
    assert "nvmlDeviceGetPcieThroughput" not in calls
    assert calls["nvmlInitWithFlags"] == calls["nvmlShutdown"] == 2
    assert calls["nvmlGpmSampleAlloc"] == calls["nvmlGpmSampleFree"]


def test_a_refused_field_is_asked_once_and_named(trace: Trace, tmp_path: Path) -> None:
    scenario = without(H100, "gpu_util", "energy") + "gpu 0 fail nvmlDeviceGetPowerUsage 4\n"
    result = trace(scenario)
    why = reasons(result)
    assert why["gpu0", "nvml.power_w"] == "Insufficient Permissions"
    assert why["gpu0", "nvml.gpu_util_pct"] == why["gpu0", "nvml.mem_util_pct"] == "Not Supported"
    assert why["gpu0", "nvml.energy_mj"] == "Not Supported"
    assert why["gpu0", "device.sm_count"] == "Not Supported"
    assert result["energy"] == [None, None]
    assert {s["power_w"] for s in result["samples"]} == {None}
    assert {s["sm_clock_mhz"] for s in result["samples"]} == {1980}
    assert nvml_stub.calls_of(tmp_path)["nvmlDeviceGetPowerUsage"] == 1


def test_an_error_that_passes_costs_one_value(trace: Trace, tmp_path: Path) -> None:
    result = trace(H100 + "gpu 0 fail nvmlDeviceGetTemperatureV 10 2\n", samples=20)
    temperatures = [s["temperature_c"] for s in result["samples"]]
    assert temperatures[:4] == [58, 58, None, None]
    assert reasons(result)["gpu0", "nvml.temperature_c"] == "Timeout"
    assert nvml_stub.calls_of(tmp_path)["nvmlDeviceGetTemperatureV"] == 2 + 10


def test_older_drivers_have_other_names(trace: Trace) -> None:
    old = (
        "gpu 0 fail nvmlDeviceGetCurrentClocksEventReasons 13\n"
        "gpu 0 fail nvmlDeviceGetTemperatureV 13\n"
    )
    sample = trace(without(H100, "reasons") + "gpu 0 reasons 0x20\n" + old)["samples"][0]
    assert (sample["throttle_mask"], sample["temperature_c"]) == (0x20, 58)


def test_a_lost_gpu_ends_its_own_samples_only(trace: Trace) -> None:
    result = trace(H100 + second_gpu() + "gpu 0 lost_after 3\n", samples=12)
    devices = [s["device"] for s in result["samples"]]
    assert devices.count(0) == 3
    assert devices.count(1) >= 9
    assert result["missing"][0] == ["gpu0", "nvml", "NVML lost the GPU: GPU is lost"]
    assert result["warnings"] == [["gpu0", "NVML lost the GPU: GPU is lost"]]


def test_losing_the_only_gpu_ends_the_thread(trace: Trace) -> None:
    result = trace(H100 + "gpu 0 lost_after 2\n", samples=1000, until_warning=True)
    assert len(result["samples"]) == 2
    assert result["enough"]


def test_gpm_values_come_from_pairs_far_enough_apart(trace: Trace) -> None:
    scenario = without(H100, "gpm_dram_bw") + "gpu 0 gpm_dram_bw 31.5 89.9\n"
    result = trace(scenario, gpm=2)
    with_gpm = [s for s in result["samples"] if s["gpm_dram_bw_pct"] is not None]
    assert [s["gpm_dram_bw_pct"] for s in with_gpm] == [31.5, 89.9]
    assert {(s["gpm_sm_util_pct"], s["gpm_sm_occupancy_pct"]) for s in with_gpm} == {(88.0, 24.0)}
    apart = with_gpm[1]["timestamp_ns"] - with_gpm[0]["timestamp_ns"]
    assert apart > 100_000_000
    assert not [key for key in reasons(result) if "gpm" in key[1]]


def test_nan_and_the_zeros_beside_it_are_dropped(trace: Trace) -> None:
    result = trace(H100 + "gpu 0 gpm_refresh_ms 300\n", gpm=1)
    utilisations = {s["gpm_sm_util_pct"] for s in result["samples"]}
    assert utilisations == {None, 88.0}  # never the 0 of a pair that was too short


def test_one_gpm_metric_may_be_missing(trace: Trace) -> None:
    result = trace(without(H100, "gpm_sm_occupancy"), gpm=1)
    assert reasons(result)[("gpu0", "nvml.gpm_sm_occupancy_pct")] == "Not Supported"
    assert {s["gpm_sm_util_pct"] for s in result["samples"]} == {None, 88.0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("gpu 0 fail nvmlGpmQueryDeviceSupport 13", "GPM: Function Not Found"),
        ("gpu 0 fail nvmlGpmSampleGet 4", "GPM: Insufficient Permissions"),
        ("gpu 0 fail nvmlGpmSampleGet 4 1", "GPM: Insufficient Permissions"),
    ],
)
def test_refused_gpm_leaves_the_rest(trace: Trace, change: str, expected: str) -> None:
    result = trace(f"{H100}{change}\n", samples=60)
    assert reasons(result)["gpu0", "gpm"].startswith(expected)
    assert {s["gpm_dram_bw_pct"] for s in result["samples"]} == {None}
    assert {s["sm_clock_mhz"] for s in result["samples"]} == {1980}


def test_gpm_says_why_under_mig_and_before_hopper(trace: Trace) -> None:
    mig = without(H100, "mig") + "gpu 0 mig 1\ngpu 0 fail nvmlGpmSampleGet 4\n"
    assert "MIG mode is on" in reasons(trace(mig))["gpu0", "gpm"]
    ampere = reasons(trace(without(H100, "gpm_dram_bw")))["gpu0", "gpm"]
    assert "Hopper and newer" in ampere


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["22222222"]),
        ("1,0", ["22222222", "11111111"]),
        ("GPU-2222", ["22222222"]),
        ("0,7,1", ["11111111"]),
        (" 0 , 1 ", ["11111111", "22222222"]),
        ("GPU-1,-1,1", ["11111111"]),
    ],
)
def test_devices_are_numbered_as_cuda_numbers_them(
    trace: Trace, visible: str, uuids: list[str]
) -> None:
    result = trace(H100 + second_gpu(), env={"CUDA_VISIBLE_DEVICES": visible})
    assert [d["uuid"][4:12] for d in result["devices"]] == uuids
    assert [d["index"] for d in result["devices"]] == list(range(len(uuids)))


@pytest.mark.parametrize("visible", ["", "-1", "GPU-", "none"])
def test_hidden_gpus_are_a_reason(trace: Trace, visible: str) -> None:
    result = trace(H100 + second_gpu(), env={"CUDA_VISIBLE_DEVICES": visible})
    assert result["probe"] == f"CUDA_VISIBLE_DEVICES={visible} hides every GPU"
    assert not result["devices"]
    assert not result["samples"]


def test_only_the_used_devices_are_sampled(trace: Trace) -> None:
    result = trace(H100 + second_gpu(), use=[1])
    assert len(result["devices"]) == 2
    assert {s["device"] for s in result["samples"]} == {1}


def test_mixed_gpus_warn_about_their_numbers(trace: Trace) -> None:
    mixed = H100 + second_gpu("NVIDIA L4")
    (warning,) = trace(mixed)["warnings"]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in warning[1]
    assert not trace(mixed, env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})["warnings"]


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("driver 1\n", "it sees no GPU"),
        ("fail nvmlInitWithFlags 9\n" + H100, "kernel driver is not loaded"),
        ("fail nvmlInitWithFlags 4\n" + H100, "no permission"),
        ("fail nvmlInitWithFlags 18\n" + H100, "differ in version"),
        ("fail nvmlInitWithFlags 17\n" + H100, "blocked"),
        ("fail nvmlDeviceGetCount_v2 999\n" + H100, "Unknown Error"),
        (H100 + "gpu 0 fail nvmlDeviceGetHandleByIndex_v2 4\n", "access to no GPU: Insufficient"),
    ],
)
def test_why_there_is_nothing_to_sample(trace: Trace, scenario: str, expected: str) -> None:
    result = trace(scenario)
    assert expected in result["probe"]
    assert not result["devices"]


def test_no_driver_library_at_all(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    code = (
        "from llmprof.tracers.nvml.tracer import NvmlTracer; t = NvmlTracer();"
        " print(t.probe().reason);"
        " t.start(); t.stop(); assert t.energy_mj(0) is None and not t.missing()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "no NVIDIA driver library (libnvidia-ml.so.1) on this machine"


def test_throttle_names() -> None:
    assert reason_names(0) == ()
    assert reason_names(0x1) == ("idle",)
    assert reason_names(0x44) == ("power cap", "hardware thermal slowdown")
    assert reason_names(0x10000) == ("reason 0x10000",)
    assert throttle_names(0x1 | 0x2 | 0x10 | 0x100) == ()
    assert throttle_names(0x8 | 0x40) == ("hardware slowdown", "hardware thermal slowdown")
    assert throttle_names(0x4 | 0x1) == ("power cap",)


def test_energy_between_two_moments() -> None:
    readings = [(100, 5000), (200, 6000), (400, 8000)]
    assert _between(readings, 150) == 5500
    assert _between(readings, 300) == 7000
    assert _between(readings, 99) is None
    assert _between(readings, 401) is None


OLD_PYNVML = """
from pynvml.theirs import *
from pynvml import theirs
NVMLError = theirs.NVMLError
"""


@pytest.fixture
def old_pynvml(tmp_path: Path) -> Path:
    """A folder ``pynvml`` before nvidia-ml-py's module of that name, without newer functions."""
    import importlib.metadata

    source = Path(str(importlib.metadata.distribution("nvidia-ml-py").locate_file("pynvml.py")))
    text = source.read_text()
    for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetTemperature", "nvmlGpmSampleAlloc",
                 "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperatureV"):  # fmt: skip
        text = text.replace(f"def {name}(", f"def _gone_{name}(")
    package = tmp_path / "old" / "pynvml"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(OLD_PYNVML)
    (package / "theirs.py").write_text(text)
    return package.parent


def test_an_old_pynvml_does_not_hide_the_right_one(trace: Trace, old_pynvml: Path) -> None:
    result = trace(H100, env={"PYTHONPATH": str(old_pynvml)})
    assert result["enough"] and not result["warnings"]
    assert result["samples"][0]["power_w"] and result["samples"][0]["temperature_c"]
    assert not [reason for reason in reasons(result).values() if "too old" in reason]


def test_what_an_old_pynvml_lacks_is_not_measured(
    library: Path, tmp_path: Path, old_pynvml: Path
) -> None:
    """And nothing else is: an AttributeError once ended the sampling thread without a word."""
    hide = "import llmprof.tracers.nvml.binding as b; b._hidden = lambda: None\n"
    done = subprocess.run(
        [sys.executable, "-c", hide + TRACE, json.dumps({"samples": 3}), "null"],
        env=nvml_stub.environment(library, tmp_path, H100, PYTHONPATH=str(old_pynvml)),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    result = json.loads(done.stdout)
    assert result["enough"] and len(result["samples"]) >= 3
    assert result["samples"][0]["sm_clock_mhz"] and result["samples"][0]["power_w"] is None
    why = reasons(result)
    for name in ("nvml.power_w", "nvml.temperature_c", "nvml.memory_used_mib", "gpm"):
        assert "too old" in why["gpu0", name] and "pip" in why["gpu0", name]
