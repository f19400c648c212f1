"""PM sampling on a real GPU, against what is known about the load. About a minute.

python3 tests/gpu/cupti/check_pm.py  (an interpreter with torch for CUDA; root, or unrestricted
                                      performance counters)

Answers: is the requested interval achieved; does DRAM % agree with bytes / time; how well are the
sample times placed; what does it cost the watched loop; how much memory does the sampler take.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from llmprof.analysis.bandwidth.pm_steps import align_to_busy, step_activity, weighted_means
from llmprof.records import Unavailable
from llmprof.tracers.copy_bandwidth import measure_copy_bandwidth
from llmprof.tracers.pm.tracer import PmSamples, PmTracer

FALLBACK_PEAK_GB_S = 3352.0  # H100 SXM: 2619 MHz × 5120 bit × 2
LAUNCH_NS = 50_000
"""From the host's stamp to the kernel's start, and from its end to the host's stamp."""
WEIGHT_BYTES = 32 * 4096 * 16384 * 2
report: dict[str, Any] = {}
failed: list[str] = []


def watched() -> None:
    """The process that is watched: torch, and one JSON answer for each command."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    weights = [torch.randn(4096, 16384, device="cuda", dtype=torch.float16) for _ in range(32)]
    row = torch.randn(1, 4096, device="cuda", dtype=torch.float16)

    def copy(seconds: float) -> dict[str, Any]:
        torch.cuda.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        count = max(4, int(seconds * 1.4e3))
        begin = time.monotonic_ns()
        events[0].record()
        for _ in range(count):
            target.copy_(source)
        events[1].record()
        torch.cuda.synchronize()
        end = time.monotonic_ns()
        gb_s = count * 2 * (1 << 30) / (events[0].elapsed_time(events[1]) / 1e3) / 1e9
        return {"gb_s": gb_s, "begin": begin, "end": end}

    def decode(steps: int) -> dict[str, Any]:
        stamps = []
        for _ in range(int(steps) + 1):
            outputs = [row @ weight for weight in weights]
            outputs[-1].sum().item()
            stamps.append(time.monotonic_ns())
        return {"stamps": stamps}

    def bursts(count: int) -> dict[str, Any]:
        edges = []
        for index in range(int(count)):
            time.sleep(0.003 + 0.0007 * (index * 7 % 11))
            begin = time.monotonic_ns()
            for _ in range(2 + index % 3):
                target.copy_(source)
            torch.cuda.synchronize()
            edges.append([begin, time.monotonic_ns()])
        return {"edges": edges}

    def device(_: float) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(0)
        clock = getattr(found, "memory_clock_rate", 0)
        width = getattr(found, "memory_bus_width", 0)
        peak = clock * 1e3 * width / 8 * 2 / 1e9 or FALLBACK_PEAK_GB_S
        return {"name": found.name, "peak_gb_s": peak, "free": torch.cuda.mem_get_info()[0]}

    commands: dict[str, Any] = {"copy": copy, "decode": decode, "bursts": bursts, "device": device}
    decode(50)
    copy(0.1)
    print("{}", flush=True)
    for line in sys.stdin:
        name, value = line.split()
        print(json.dumps(commands[name](float(value))), flush=True)


class Watched:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "watched"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def ask(self, name: str, value: float = 0) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {value}\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def plain(value: Any) -> Any:
    """numpy's numbers and arrays for JSON."""
    return np.asarray(value).tolist()


def say(key: str, **values: Any) -> None:
    report.setdefault(key, []).append(values)
    print(key, json.dumps(values, default=plain), flush=True)


def require(what: str, holds: bool) -> None:
    print("ok  " if holds else "FAIL", what, flush=True)
    if not holds:
        failed.append(what)


def stop(tracer: PmTracer) -> PmSamples:
    samples = tracer.stop_round()
    if isinstance(samples, Unavailable):
        sys.exit(f"stop_round: {samples.reason}")
    return samples


def start(tracer: PmTracer, seconds: float) -> None:
    refused = tracer.start_round(seconds)
    if refused is not None:
        sys.exit(f"start_round: {refused.reason}")


def process_cost(pid: int | None) -> dict[str, float]:
    """Peak memory, MiB, and CPU time, s, of the sampler."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    memory = {
        k: int(v.split()[0]) / 1024
        for k, _, v in (s.partition(":") for s in status)
        if k in ("VmHWM", "VmRSS")
    }
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return {**memory, "cpu_s": (int(fields[11]) + int(fields[12])) / ticks}


def quality(samples: PmSamples) -> dict[str, Any]:
    width = samples.end_ns - samples.start_ns
    clock = samples.clock
    return {
        "samples": len(width),
        "interval_us": samples.interval_ns / 1e3,
        "width_us": np.percentile(width, [0, 50, 100]) / 1e3 if len(width) else None,
        "first_width_us": float(width[0]) / 1e3,
        "gaps": samples.gaps,
        "dropped": samples.dropped,
        "overflow": samples.overflow,
        "clock": clock.method,
        "low_us": clock.low_ns / 1e3,
        "high_us": clock.high_ns / 1e3,
        "error_us": None if clock.error_ns is None else clock.error_ns / 1e3,
    }


def sm_clock() -> str:
    command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "n/a"


def intervals(load: Watched, peak: float) -> int:
    """Requested → achieved, in new processes; DRAM % during a copy. The shortest clean one, ns."""
    shortest = 200_000
    for requested in (200_000, 100_000, 50_000):
        tracer = PmTracer(0, requested)
        start(tracer, 0.7)
        copied = load.ask("copy", 0.5)
        try:
            samples = stop(tracer)
        except SystemExit as why:  # an interval that is too short is an answer, too
            say("interval", requested_us=requested / 1e3, refused=str(why))
            continue
        inside = [copied["begin"] + 20_000_000, copied["end"] - 20_000_000]
        dram, read, sm = (
            weighted_means(inside, samples.start_ns, samples.end_ns, values)[0][0]
            for values in (samples.dram_pct, samples.dram_read_pct, samples.sm_active_pct)
        )
        known = 100 * copied["gb_s"] / peak
        say(
            "interval",
            requested_us=requested / 1e3,
            copy_gb_s=copied["gb_s"],
            known_pct=known,
            dram_pct=dram,
            read_pct=read,
            sm_pct=sm,
            **quality(samples),
            **process_cost(tracer.pid),
        )
        require(
            f"{requested / 1e3:.0f} µs: DRAM {dram:.1f} % ≈ {known:.1f} % (within 4 %)",
            abs(dram / known - 1) < 0.04,
        )
        if not samples.overflow and samples.gaps == 0 and samples.interval_ns < 1.1 * requested:
            shortest = min(shortest, requested)
        tracer.close()
    return shortest


def clock(load: Watched, interval_ns: int) -> None:
    """Bursts with known host times: where do the samples say that they were?"""
    tracer = PmTracer(0, interval_ns)
    start(tracer, 1.5)
    edges = np.array(load.ask("bursts", 100)["edges"])
    samples = stop(tracer)
    tracer.close()
    found = align_to_busy(
        samples.start_ns, samples.end_ns, samples.dram_pct, edges[:, 0], edges[:, 1], 2_000_000
    )
    say(
        "clock",
        requested_us=interval_ns / 1e3,
        residual_us=found.offset_ns / 1e3,
        score=found.score,
        **quality(samples),
    )
    error = samples.clock.error_ns
    require(
        f"clock residual {found.offset_ns / 1e3:.0f} µs lies within the bound "
        f"{'?' if error is None else error / 1e3} µs (+ {LAUNCH_NS / 1e3:.0f} µs of launch)",
        error is not None and abs(found.offset_ns) <= error + LAUNCH_NS,
    )


def steps(load: Watched, interval_ns: int, peak: float) -> None:
    tracer = PmTracer(0, interval_ns)
    start(tracer, 2.0)
    stamps = np.array(load.ask("decode", 400)["stamps"])
    samples = stop(tracer)
    tracer.close()
    found = step_activity(
        stamps,
        samples.start_ns,
        samples.end_ns,
        samples.dram_pct,
        samples.sm_active_pct,
        samples.clock.error_ns,
        peak,
    )
    length = np.diff(stamps)
    modelled = WEIGHT_BYTES / length
    has = ~np.isnan(found.dram_gb_s)
    say(
        "steps",
        requested_us=interval_ns / 1e3,
        step_us=np.median(length) / 1e3,
        with_value=int(has.sum()),
        of=len(length),
        samples_a_step=np.median(found.samples),
        measured_gb_s=np.median(found.dram_gb_s[has]) if has.any() else None,
        modelled_gb_s=np.median(modelled),
        unavailable=found.unavailable.reason if found.unavailable is not None else None,
        **quality(samples),
    )
    if has.any():
        ratio = float(np.median(found.dram_gb_s[has] / modelled[has]))
        require(
            f"measured / modelled bandwidth of a step {ratio:.3f} (within 8 %)",
            abs(ratio - 1) < 0.08,
        )


def effect(load: Watched, interval_ns: int) -> None:
    """Median step bare, with the counters held, and while sampling; in turns."""
    medians: dict[str, list[float]] = {"bare": [], "held": [], "sampling": []}
    clocks: dict[str, str] = {}
    tracer = PmTracer(0, interval_ns)
    for _ in range(8):
        for kind, values in medians.items():
            if kind == "sampling":
                start(tracer, 1.0)
            elif kind == "held":
                start(tracer, 1.0)
                tracer.stop_round()  # too short for samples, and none are wanted
            else:
                tracer.close()
            values.append(float(np.median(np.diff(load.ask("decode", 150)["stamps"]))) / 1e3)
            clocks[kind] = sm_clock()
            if kind == "sampling":
                stop(tracer)
    tracer.close()
    pairs = {
        kind: statistics.median(a / b for a, b in zip(medians[kind], medians["bare"], strict=True))
        for kind in ("held", "sampling")
    }
    say("effect", step_us=medians, ratio=pairs, clocks_after=clocks)
    require(f"paired ratio while sampling {pairs['sampling']:.4f} < 1.03", pairs["sampling"] < 1.03)


def long_round(load: Watched) -> None:
    tracer = PmTracer(0, 200_000)
    free = load.ask("device")["free"]
    start(tracer, 15)
    held = free - load.ask("device")["free"]
    load.ask("copy", 15)
    begin = time.monotonic()
    samples = stop(tracer)
    cost = process_cost(tracer.pid)
    say(
        "long", device_mib=held / 2**20, stop_s=time.monotonic() - begin, **quality(samples), **cost
    )
    require(f"sampler's peak memory {cost['VmHWM']:.0f} MiB < 300 MiB", cost["VmHWM"] < 300)
    require("no gap in a long round", samples.gaps == 0 and not samples.overflow)
    tracer.close()


def main() -> int:
    copied = measure_copy_bandwidth(0)
    if isinstance(copied, Unavailable):
        print("copy n/a:", copied.reason)
    else:
        say("copy", gb_s=copied.gb_s, best_gb_s=copied.best_gb_s)
    tracer = PmTracer(0)
    begin = time.monotonic()
    refused = tracer.probe()
    say("probe", seconds=time.monotonic() - begin, **tracer.facts)
    if refused is not None:
        sys.exit(f"probe: {refused.reason}")
    load = Watched()
    device = load.ask("device")
    say("device", **device)
    peak = float(device["peak_gb_s"])
    shortest = intervals(load, peak)
    for interval_ns in sorted({200_000, shortest}, reverse=True):
        clock(load, interval_ns)
        steps(load, interval_ns, peak)
    effect(load, 200_000)
    long_round(load)
    load.close()
    if os.environ.get("OUT"):
        path = Path(os.environ["OUT"]) / "check_pm.json"
        path.write_text(json.dumps(report, default=plain, indent=1))
    print("failed:", failed or "nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["watched"]:
        watched()
    else:
        sys.exit(main())
