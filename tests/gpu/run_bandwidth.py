"""DRAM bandwidth of single kernels on a real GPU, against what is known about them.

    python3 tests/gpu/run_bandwidth.py [--wheels DIR] [--only planted|torch|ncu] [--keep DIR]

Needs torch for CUDA, numpy, nvcc; ncu for the comparison. ``--wheels`` is a folder of wheels that
the interpreter lacks (nvtx, platformdirs, nvidia-ml-py, threadpoolctl): they are unpacked, nothing
is installed.
Under four minutes on an H100. Prints markdown tables; exit code 1 if a check failed.

* planted: kernels of our own that read a known number of bytes at a known time
* torch: Llama-2-7B in fp16 in a CUDA graph; bytes a launch against the weights' shapes
* ncu: the same kernels under Nsight Compute, replayed
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LAYERS, STEPS = 8, 1500
PLANTED = {
    # name, grid x -> MB, share of the kernel's end without reads is spin / duration, ns, where
    ("even", 264): (50.0, 0, ""),
    ("read_then_spin", 264): (32.0, 24_000, "end"),
    ("spin_then_read", 264): (24.0, 16_000, "begin"),
    ("read_then_spin", 128): (16.0, 40_000, "end"),
    ("trickle", 4): (4.0, 0, ""),
}
HIDDEN, INNER, VOCAB = 4096, 11008, 32000
TRUE = {
    "qkv": 3 * HIDDEN * HIDDEN * 2 / 1e6,
    "o": HIDDEN * HIDDEN * 2 / 1e6,
    "gate+up": 2 * HIDDEN * INNER * 2 / 1e6,
    "down": HIDDEN * INNER * 2 / 1e6,
    "lm_head": HIDDEN * VOCAB * 2 / 1e6,
}
"""MB; gate and up alone are as large as down."""
AIM, NCU_AIM = 0.015, 0.05
failed: list[str] = []


def say(ok: bool, text: str) -> None:
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


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
    from llmprof.analysis.bandwidth.kernels import KernelBandwidth, kernel_bandwidth
    from llmprof.analysis.device.naming.categories import shipped_rules
    from llmprof.ingest.traced_round import TraceImport
    from llmprof.records import EngineInfo, EngineRecord, PmRound, RoundRecord, RunInfo, Unavailable
    from llmprof.runfile.reader import RunFileReader
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
    command = [sys.executable, __file__, "--child", str(library), str(spool), str(STEPS)]
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
        kernel = next(
            (k for k in found.kernels if k.short_name == name and k.grid and k.grid[0] == grid),
            None,
        )
        if kernel is None or isinstance(kernel.mb_per_launch, Unavailable):
            say(False, f"planted {name} {grid}: no value ({kernel and kernel.note})")
            continue
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
    off = abs(found.fitted_gb_s / found.mean_gb_s - 1)
    say(off <= 0.01, f"sum over kernels against the samples: {off:.3%}")


def torch_run(folder: Path) -> None:
    out = folder / "torch.sqlite"
    command = [
        sys.executable, "-m", "llmprof", "--headless", "--json", "--engine",
        "torch:device=cuda,dtype=fp16,cuda_graph=1", "--model", "llama2-7b", "--prompt-len", "64",
        "--decode-len", "200", "--rounds", "2", "--no-host", "-o", str(out),
    ]  # fmt: skip
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    print(f"\nllmprof took {time.monotonic() - begin:.0f} s, exit code {done.returncode}")
    if done.returncode:
        print(done.stderr[-2000:])
    document = json.loads(done.stdout)
    tracing = document["engines"][0]["tracing"]
    found = tracing["dram_per_kernel"]
    if found is None:
        raise RuntimeError(tracing["dram_per_kernel_reason"])
    print("\n### torch, Llama-2-7B fp16 in a CUDA graph\n")
    print(json.dumps({k: v for k, v in found.items() if k not in ("kernels", "headroom")}), "\n")
    print(found["headroom"] and found["headroom"]["words"], "\n")
    off = abs(found["fitted_gb_s"] / found["mean_gb_s"] - 1)
    say(off <= 0.01, f"torch: sum over kernels against the samples: {off:.3%}")
    print(
        "| kernel | after | a step | µs | share | weights | MB | 95 % | error | of the copy |"
        " GB/s along it |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    met: set[str] = set()
    for kernel in found["kernels"][:24]:
        size = kernel["mb_per_launch"]
        product = "GEMM" in kernel["category"] and kernel["median_ns"] > 8000
        near = min(TRUE, key=lambda n: abs(TRUE[n] - (size or 0))) if product else ""
        error = None if size is None or not near else size / TRUE[near] - 1
        known = (
            "n/a"
            if size is None
            else f"{size:.2f} | {kernel['low_mb']:.2f}–{kernel['high_mb']:.2f}"
        )
        print(
            f"| {kernel['short_name'][:44]} {kernel['grid']} | {kernel['after'][:20]} |"
            f" {kernel['launches_per_step']:.1f} | {kernel['median_ns'] / 1e3:.1f} |"
            f" {kernel['share']:.1%} | {near} | {known} |"
            f" {'' if error is None else f'{error:+.2%}'} |"
            f" {'n/a' if kernel['of_ceiling'] is None else format(kernel['of_ceiling'], '.0%')} |"
            f" {' '.join(f'{v:.0f}' for v in kernel['profile_gb_s'])} |"
        )
        if error is not None and kernel["share"] > 0.05:
            met.add(near)
            say(abs(error) <= AIM, f"torch {near}: {error:+.2%} of {TRUE[near]:.2f} MB")
    say(len(met) >= 4, f"torch: weights met by kernels over 5 % of the step: {sorted(met)}")
    if os.environ.get("OUT"):
        Path(os.environ["OUT"], "torch_bandwidth.json").write_text(json.dumps(found))


GEMVS = """
import torch
shapes = {"qkv": (12288, 4096), "o": (4096, 4096), "gate+up": (22016, 4096),
          "down": (4096, 11008), "lm_head": (32000, 4096)}
like = {"device": "cuda", "dtype": torch.float16}
w = {n: [torch.randn(s, **like) for _ in range(3)] for n, s in shapes.items()}
x = {n: torch.randn(1, s[1], **like) for n, s in shapes.items()}
for i in range(3):
    for n in shapes:
        torch.nn.functional.linear(x[n], w[n][i])
torch.cuda.synchronize()
"""


def ncu(folder: Path) -> None:
    """Bytes of the same kernels, each replayed alone."""
    found = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not Path(found).exists():
        print("\nncu is not there: no comparison")
        return
    print("\n### Under Nsight Compute (kernels replayed one by one)\n")
    print("| kernel | grid | known MB | ncu MB read | written |\n|---|---|---|---|---|")
    library = folder / "planted.so"
    if not library.exists():
        library = build(folder)
    planted_command = [sys.executable, __file__, "--child", str(library), "", "1"]
    rows = ncu_rows(found, planted_command)
    for (name, grid), (true, _, _) in PLANTED.items():
        mine = [r for r in rows if r[0].startswith(name) and r[1] == grid]
        if not mine:
            say(False, f"ncu {name} {grid}: not seen")
            continue
        read, written = (sorted(r[i] for r in mine)[len(mine) // 2] for i in (2, 3))
        print(f"| {name} | {grid} | {true:.2f} | {read:.2f} | {written:.2f} |")
        say(abs(read / true - 1) <= NCU_AIM, f"ncu {name} {grid}: {read:.2f} of {true} MB")
    script = folder / "gemvs.py"
    script.write_text(GEMVS)
    rows = ncu_rows(found, [sys.executable, str(script)])
    for name, true in TRUE.items():
        near = [r for r in rows if abs(r[2] / true - 1) < 0.1]
        for r in {(r[0], r[1]): r for r in near}.values():
            print(f"| {name}: {r[0][:44]} | {r[1]} | {true:.2f} | {r[2]:.2f} | {r[3]:.2f} |")


def ncu_rows(program: str, command: list[str]) -> list[tuple[str, int, float, float]]:
    """Name, grid x, MB read, MB written of each kernel."""
    metrics = "dram__bytes_read.sum,dram__bytes_write.sum"
    done = subprocess.run(
        [program, "--csv", "--page", "raw", "--print-units", "base", "--metrics", metrics,
         *command],
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    table: list[tuple[str, int, float, float]] = []
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        try:
            grid = int(row["Grid Size"].strip("()").split(",")[0])
            read, written = (float(row[m].replace(",", "")) / 1e6 for m in metrics.split(","))
        except (KeyError, ValueError):
            continue  # the row of units
        table.append((row["Kernel Name"], grid, read, written))
    if not table:
        print("ncu said:", (done.stdout + done.stderr)[-1500:])
    return table


def guarded(work: Callable[[Path], None], folder: Path) -> None:
    begin = time.monotonic()
    try:
        work(folder)
    except Exception as why:  # noqa: BLE001 - the next part is still worth a try
        traceback.print_exc()
        say(False, f"{work.__name__}: {type(why).__name__}: {str(why)[:300]}")
    print(f"({work.__name__}: {time.monotonic() - begin:.0f} s)\n", flush=True)


def unpacked(wheels: Path) -> str:
    """A folder with the contents of the wheels, for sys.path."""
    folder = tempfile.mkdtemp(prefix="wheels-")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--only", choices=("planted", "torch", "ncu"))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--child", nargs=3)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], given.child[1], int(given.child[2]))
        return 0
    paths = [str(ROOT)]
    if given.wheels:
        paths.append(unpacked(given.wheels))
        sys.path.append(paths[-1])
    os.environ["PYTHONPATH"] = ":".join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(":")
    folder = given.keep or Path(tempfile.mkdtemp(prefix="bandwidth-"))
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("nvidia-smi") is None:
        sys.exit("no NVIDIA GPU here: nvidia-smi was not found")
    query = "name,driver_version,clocks.max.mem"
    smi = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print("GPU:", smi.stdout.strip(), "| python", sys.version.split()[0])
    parts = {"planted": planted, "torch": torch_run, "ncu": ncu}
    for name, work in parts.items():
        if given.only in (None, name):
            guarded(work, folder)
    print("\nfailed:", failed or "nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
