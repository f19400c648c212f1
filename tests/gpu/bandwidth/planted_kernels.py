"""Kernels of our own that read a known number of bytes at a known time (planted.cu), sampled."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

from checks import AIM, ROOT, say, summed

LAYERS, STEPS = 8, 1500
PLANTED = {
    # name, grid x -> MB, spin ns, where it lies in the kernel
    ("even", 264): (50.0, 0, ""),
    ("read_then_spin", 264): (32.0, 24_000, "end"),
    ("spin_then_read", 264): (24.0, 16_000, "begin"),
    # Beside each other on two streams, always alike.
    ("read_then_spin", 128): (16.0, 40_000, "end"),
    ("trickle", 4): (4.0, 0, ""),
    # The same, in half of the layers one behind the other.
    ("read_then_spin", 96): (16.0, 40_000, "end"),
    ("trickle", 6): (6.0, 0, ""),
}
ALWAYS_BESIDE = {("read_then_spin", 128), ("trickle", 4)}
PAIRS = {128: 20.0, 96: 22.0}
"""Grid x of the longer one -> MB of both."""


def build(folder: Path) -> Path:
    """The planted kernels as a library."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    source, library = Path(__file__).with_name("planted.cu"), folder / "planted.so"
    arch = f"-arch=sm_{capability()}"
    command = [nvcc, "-O2", arch, "-shared", "-Xcompiler", "-fPIC", "-o", library, source]
    subprocess.run(command, check=True)
    return library


def capability() -> str:
    cuda = ctypes.CDLL("libcuda.so.1")
    cuda.cuInit(0)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return f"{major.value}{minor.value}"


def child(library: str, spool: str, steps: int) -> None:
    """Runs the planted kernels, traced where a spool is named; stamps on stdout."""
    from llmprof.records import Unavailable
    from llmprof.tracers.cupti.tracer import CuptiTracer

    tracer = CuptiTracer(Path(spool), "kernels") if spool else None
    if tracer is not None:
        why = tracer.start()
        if why is not None:
            sys.exit(why.reason)
    planted = ctypes.CDLL(library)
    planted.setup.argtypes = [ctypes.c_size_t]
    if planted.setup(4 << 30) or planted.step(LAYERS):
        sys.exit("CUDA failed")
    for _ in range(20 if tracer else 0):
        planted.step(LAYERS)
    print("READY", flush=True)
    if tracer is not None:
        sys.stdin.readline()
        begun = tracer.begin_round(1)
        if isinstance(begun, Unavailable):
            sys.exit(begun.reason)
    stamps = [time.monotonic_ns()]
    for _ in range(steps):
        if planted.step(LAYERS):
            sys.exit("CUDA failed")
        stamps.append(time.monotonic_ns())
    if tracer is not None:
        facts = tracer.end_round(1)
        if isinstance(facts, Unavailable):
            sys.exit(facts.reason)
    print(json.dumps(stamps), flush=True)
    if tracer is not None:
        tracer.close()


def planted(folder: Path) -> None:
    from llmprof.ingest.traced_round import TraceImport
    from llmprof.records import EngineInfo, EngineRecord, PmRound, RoundRecord, RunInfo, Unavailable
    from llmprof.runfile.writing.writer import RunFileWriter
    from llmprof.tracers.copy_bandwidth import measure_copy_bandwidth
    from llmprof.tracers.nvml.tracer import NvmlTracer
    from llmprof.tracers.pm.tracer import PmTracer

    library = build(folder)
    copy = measure_copy_bandwidth(0)
    nvml = NvmlTracer(on_samples=lambda _: None, on_warning=lambda *_: None)
    why = nvml.probe()
    devices = why if isinstance(why, Unavailable) else nvml.devices()
    if isinstance(devices, Unavailable):
        raise RuntimeError(devices.reason)
    spool = folder / "spool"
    command = [sys.executable, __file__, str(library), str(spool), str(STEPS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline().strip() != "READY":
        raise RuntimeError("the planted kernels did not start")
    tracer = PmTracer(0, 200_000, further=True)
    refused = tracer.start_round(10.0)
    if refused is not None:
        raise RuntimeError(refused.reason)
    process.stdin.write("go\n")
    process.stdin.flush()
    stamps = json.loads(process.stdout.readline())
    samples = tracer.stop_round()
    print("counters", json.dumps(tracer.facts, default=str))
    tracer.close()
    process.wait(60)
    if isinstance(samples, Unavailable):
        raise RuntimeError(samples.reason)
    path = folder / "planted.sqlite"
    info = RunInfo(
        t0_ns=stamps[0] - 10**9, t0_utc_ns=time.time_ns(), tool_version="0", tool_commit=None,
        command=["planted"], workload={}, trace_level="kernels", state="finished",
        environment={"copy_gb_s": {} if isinstance(copy, Unavailable) else {"cuda:0": copy.gb_s}},
    )  # fmt: skip
    engine = EngineRecord(
        0, "planted", "planted", sys.executable, {}, state="finished",
        info=EngineInfo(device="cuda:0"), pid=process.pid, traced_pid=process.pid,
    )  # fmt: skip
    with RunFileWriter(path, info) as writer:
        writer.put_engine(engine)
        writer.put_gpu_devices(devices)
        writer.put_round(
            RoundRecord(
                round_id=1, engine_id=0, pass_name="sampled", index=0, pid=process.pid,
                tid=process.pid, start_ns=stamps[0], prefill_start_ns=stamps[0],
                stamps_ns=array("q", stamps), end_ns=stamps[-1], complete=True,
            )
        )  # fmt: skip
        done = TraceImport(writer, 0, process.pid).round(spool, 1)
        if isinstance(done, Unavailable):
            raise RuntimeError(done.reason)
        print(
            f"{done.kernels} kernels, lost {done.lost}, {len(samples.start_ns)} samples,"
            f" clock {samples.clock.method} ±{samples.clock.error_ns} ns, gaps {samples.gaps}"
        )
        clock = samples.clock
        writer.put_pm_round(
            PmRound(1, 0, samples.interval_ns, clock.method, clock.error_ns, samples.dropped,
                    samples.overflow),
            {
                "start": samples.start_ns, "end": samples.end_ns, "dram_pct": samples.dram_pct,
                "dram_read_pct": samples.dram_read_pct, "sm_active_pct": samples.sm_active_pct,
                **samples.further,
            },
        )  # fmt: skip
    tables(path)


def tables(path: Path) -> None:
    """Fit and print."""
    from llmprof.analysis.bandwidth.kernels import KernelBandwidth, kernel_bandwidth
    from llmprof.analysis.device.naming.categories import shipped_rules
    from llmprof.records import Unavailable
    from llmprof.runfile.reader import RunFileReader

    begin = time.monotonic()
    with RunFileReader(path) as reader:
        data = reader.run_data()
        found = kernel_bandwidth(reader, data, data.engines[0], shipped_rules())
    if not isinstance(found, KernelBandwidth):
        raise RuntimeError(found.reason)
    print(f"\n### Planted kernels ({time.monotonic() - begin:.1f} s of fit)\n")
    facts(found)
    print(
        "| kernel | grid | µs | known MB | measured MB | 95 % | error | outside its reads |"
        " GB/s along the kernel |\n|---|---|---|---|---|---|---|---|---|"
    )
    for (name, grid), (true, spin, where) in PLANTED.items():
        mine = [k for k in found.kernels if k.short_name == name and k.grid and k.grid[0] == grid]
        kernel = next((k for k in mine if not isinstance(k.mb_per_launch, Unavailable)), None)
        if kernel is None:
            if (name, grid) not in ALWAYS_BESIDE:
                say(False, f"planted {name} {grid}: no value ({[k.note for k in mine]})")
            continue
        if (name, grid) in ALWAYS_BESIDE:
            say(False, f"planted {name} {grid}: told apart, though it never ran alone")
        error = kernel.mb_per_launch / true - 1
        quiet, share = quiet_part(kernel.profile_gb_s, spin / kernel.median_ns, where)
        print(
            f"| {name} | {grid} | {kernel.median_ns / 1e3:.1f} | {true:.2f} |"
            f" {kernel.mb_per_launch:.2f} | {kernel.low_mb:.2f}–{kernel.high_mb:.2f} |"
            f" {error:+.2%} | {share} | {' '.join(f'{v:.0f}' for v in kernel.profile_gb_s)} |"
        )
        limit = 0.05 if name == "trickle" else AIM
        say(abs(error) <= limit, f"planted {name} {grid}: {error:+.2%} of {true} MB")
        say(quiet, f"planted {name} {grid}: while it spins {share} of its bytes")
    pairs(found)


def pairs(found: Any) -> None:
    """Kernels beside each other: what both have together."""
    print("\n| together | a step | known MB | measured MB | 95 % | error |\n" + "|---" * 6 + "|")
    for grid, known in PAIRS.items():
        both = next((k for k in found.kernels if k.others and k.grid and k.grid[0] == grid), None)
        if both is None or not isinstance(both.dram_gb_s, float):
            say(False, f"planted pair {grid}: not one group")
            continue
        # Two launches, one of each.
        scale = both.share * found.step_ns / 1e6 / (both.launches_per_step / 2)
        low, value, high = (v * scale for v in (both.low_gb_s, both.dram_gb_s, both.high_gb_s))
        names = ", ".join((both.short_name, *both.others))
        print(
            f"| {names} | {both.launches_per_step / 2:.2f} | {known:.2f} | {value:.2f} |"
            f" {low:.2f}–{high:.2f} | {value / known - 1:+.2%} |"
        )
        say(abs(value / known - 1) <= AIM, f"planted pair {grid}: {value / known - 1:+.2%}")
        say(low <= known <= high, f"planted pair {grid}: the interval holds what is known")


def quiet_part(profile: tuple[float, ...], spun: float, where: str) -> tuple[bool, str]:
    """Is next to nothing read where the kernel spins? Parts that lie wholly there."""
    if not where:
        return True, "–"
    many = len(profile)
    whole = int(spun * many)
    if not whole or not sum(profile):
        return False, "not told apart"
    parts = profile[:whole] if where == "begin" else profile[many - whole :]
    share = sum(parts) / sum(profile)
    return share < 0.03, f"{share:.1%}"


def facts(found: Any) -> None:
    ceiling = found.ceiling_gb_s
    print(
        f"{found.samples} samples of {found.interval_ns / 1e3:.0f} µs over {found.steps} steps in"
        f" {found.rounds} rounds; R² {found.r2:.5f}; residual {found.error_pct:.2f} % of peak;"
        f" parts {found.part_ns} ns; offset {found.offset_ns} ns, drift {found.drift_ns} ns;"
        f" specification {found.spec_gb_s:.0f} GB/s, copy {ceiling} GB/s; sampled"
        f" {found.mean_gb_s:.1f}, fitted {found.fitted_gb_s:.1f}, idle {found.idle_gb_s:.1f} GB/s\n"
    )
    summed("planted", found.fitted_gb_s, found.mean_gb_s)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]))
