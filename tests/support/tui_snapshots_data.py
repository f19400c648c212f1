"""Fixed snapshots for the TUI's tests and its byte budget: no clock, no chance."""

from __future__ import annotations

from dataclasses import replace

from llmprof.analysis.view.frames.snapshot import EngineView, GpuView, PairView, Snapshot
from llmprof.records import GpuDevice, GpuSample, Unavailable

H100 = GpuDevice(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-0",
    memory_total_mib=81559.0,
    bus_width_bits=5120,
    max_sm_clock_mhz=1980,
    max_mem_clock_mhz=2619,
    power_limit_w=700.0,
)
NO_COUNTER = Unavailable("no energy counter: NVML is not installed")


def noise(index: int, seed: int) -> float:
    """A value in [0, 1) that is the same on every machine."""
    return ((index * 7919 + seed * 104729 + 12345) * 1103515245 % 2**31) / 2**31


def latencies(
    count: int, median: float, seed: int, spikes: tuple[int, ...] = ()
) -> tuple[float, ...]:
    return tuple(
        median * (0.97 + 0.08 * noise(i, seed) + (1.1 if i in spikes else 0.0))
        for i in range(count)
    )


def sample(index: int) -> GpuSample:
    return GpuSample(
        timestamp_ns=index * 100_000_000,
        device=0,
        sm_clock_mhz=1980 - (15 if noise(index, 1) > 0.8 else 0),
        mem_clock_mhz=2619,
        gpu_util_pct=96.0 + round(noise(index, 2) * 4),
        power_w=430.0 + 90 * noise(index // 5, 3),
        temperature_c=52 + index // 40,
        throttle_mask=0,
        memory_used_mib=21824.0,
        gpm_dram_bw_pct=58.0 + 12 * noise(index // 3, 4),
        gpm_sm_util_pct=40.0 + 20 * noise(index // 4, 5),
    )


def gpu(samples: int = 120) -> GpuView:
    history = tuple(sample(i) for i in range(samples))
    return GpuView(device=H100, latest=history[-1], history=history)


TORCH = EngineView(
    engine_id=0,
    label="torch",
    detail="torch 2.13 · fp32 · cpu",
    state="running",
    phase="timing 3/8",
    progress=0.62,
    step_ms=latencies(79, 25.9, 1, (12, 51)),
    round_label="round 3/8",
    steps_done=335,
    tok_s=38.57,
    tok_s_low=38.1,
    tok_s_high=39.02,
    ttft_ms=41.23,
    prefill_tok_s=169.8,
    itl_p50_ms=25.93,
    itl_p95_ms=27.9,
    itl_p99_ms=31.04,
    itl_max_ms=54.2,
    bandwidth_gb_s=20.9,
    roofline_share=0.372,
    joule_per_token=NO_COUNTER,
)
LLAMACPP = EngineView(
    engine_id=1,
    label="llamacpp",
    detail="llama.cpp b6100 · Q4_1 · cpu",
    state="ready",
    phase="waiting",
    progress=0.375,
    step_ms=latencies(128, 16.4, 2, (3, 90, 91)),
    round_label="round 3/8",
    steps_done=384,
    tok_s=60.91,
    tok_s_low=60.2,
    tok_s_high=61.4,
    ttft_ms=22.6,
    prefill_tok_s=309.7,
    itl_p50_ms=16.41,
    itl_p95_ms=17.22,
    itl_p99_ms=18.9,
    itl_max_ms=35.1,
    bandwidth_gb_s=5.31,
    roofline_share=0.094,
    joule_per_token=NO_COUNTER,
)
LOG = (
    "torch: loaded in 1.8 s",
    "llamacpp: loaded in 0.4 s",
    "torch: warm after 24 steps",
    "llamacpp: warm after 16 steps",
    "timing pass: 8 rounds, engines in turn, seed 0",
)
LIVE = Snapshot(
    title="SmolLM2-135M-Instruct",
    state="running",
    message="",
    workload="prompt 7 · decode 128 · batch 1 · 8 rounds",
    elapsed_s=42.3,
    engines=(TORCH, LLAMACPP),
    gpus=(gpu(),),
    log=LOG,
    file="/data/runs/2025-06-01-smollm2.sqlite",
)
NO_GPU = replace(
    LIVE,
    gpus=(GpuView(None, None, unavailable="NVML not found (libnvidia-ml.so.1): no NVIDIA driver"),),
)
TEXT = (
    "Gravity is the force by which a planet or other body draws objects toward its center. "
    "The force of gravity keeps all of the planets in orbit around the sun."
)
FINISHED = replace(
    NO_GPU,
    state="finished",
    elapsed_s=96.0,
    engines=(
        replace(
            TORCH,
            state="finished",
            phase="done",
            progress=1.0,
            steps_done=1024,
            step_ms=latencies(128, 25.9, 7, (40,)),
            round_label="round 8/8",
            slowdown=1.08,
            text=TEXT + " It also pulls on the moon.",
        ),
        replace(
            LLAMACPP,
            state="finished",
            phase="done",
            progress=1.0,
            steps_done=1024,
            step_ms=latencies(128, 16.4, 8),
            round_label="round 8/8",
            slowdown=Unavailable("no traced pass for this engine"),
            text=TEXT + " Without it the air would drift away.",
        ),
    ),
    pairs=(
        PairView(
            a="torch",
            b="llamacpp",
            ratio=1.579,
            low=1.551,
            high=1.604,
            difference_seen=True,
            verdict="llamacpp is 1.58× as fast as torch (95 %: 1.55–1.60)",
            common_prefix=31,
            agreement=0.84,
        ),
    ),
    warnings=("torch: warm-up was not stable after 200 steps; its first rounds may be slow",),
)
FAILED = replace(
    NO_GPU,
    state="failed",
    message="no engine finished",
    engines=(
        replace(
            TORCH,
            state="failed",
            phase="failed",
            progress=None,
            step_ms=(),
            failure="out of memory: weights need 26.1 GB, 15.2 GB are free; choose a smaller "
            "model, or dtype=float16",
        ),
        replace(
            LLAMACPP,
            state="failed",
            phase="failed",
            failure="llama-cpp-python is not installed in /opt/py/bin/python; "
            "pip install -e '.[llamacpp]'",
        ),
    ),
)
HALF_FAILED = replace(LIVE, engines=(FAILED.engines[0], LLAMACPP), warnings=FINISHED.warnings)
START = Snapshot(
    title="SmolLM2-135M-Instruct",
    state="running",
    message="",
    workload=LIVE.workload,
    elapsed_s=0.4,
    engines=(
        EngineView(0, "torch", "", "loading", "loading weights", 0.3),
        EngineView(1, "llamacpp", "", "pending", "waiting", None),
    ),
    gpus=(),
    log=("starting torch",),
)
SIX = replace(
    LIVE,
    engines=tuple(
        replace(
            LLAMACPP if i % 2 else TORCH,
            engine_id=i,
            label=name,
            step_ms=latencies(60 + 40 * i, 8.0 + 3 * i, i, (20 + i,)),
        )
        for i, name in enumerate(("torch", "llamacpp", "exllamav2", "exllamav3", "mlc", "torch#2"))
    ),
)
ONE = replace(LIVE, engines=(TORCH,))
HOSTILE = replace(
    FINISHED,
    title="[red]title[/] \x1b[2J",
    workload="[bold]w[/bold]",
    engines=(
        replace(
            TORCH, label="[red]x[/]", detail="\x1b]0;owned\x07", text="[link=x]t[/] \x1b[2Jend"
        ),
        replace(LLAMACPP, state="failed", failure="[blink]why[/blink] \x1b[31m\u202e\udcff 漢字"),
    ),
    log=("[b]log[/b] \x9b2J",),
)


class FixedSource:
    """A source whose snapshot the test sets."""

    def __init__(self, snapshot: Snapshot, live: bool = True) -> None:
        self.live = live
        self.now = snapshot
        self.stopped = 0

    def snapshot(self) -> Snapshot:
        return self.now

    def outline(self) -> None:
        return None

    def trace(self, tell: object = None) -> Unavailable:
        return Unavailable("no traced pass")

    def stop(self) -> None:
        self.stopped += 1


def grown(ms: int) -> Snapshot:
    """``LIVE`` after ``ms`` more milliseconds, as a session shows it: the engines take turns."""
    torch_ms, llama_ms = 128 * 26, 128 * 16
    turn, at = divmod(ms, torch_ms + llama_ms)
    torch_runs = at < torch_ms
    torch_steps = 1 + at // 26 if torch_runs else 128
    llama_steps = 128 if torch_runs else 1 + (at - torch_ms) // 16
    torch = replace(
        TORCH,
        state="running" if torch_runs else "ready",
        phase=f"timing {turn + 3}/8" if torch_runs else "waiting",
        round_label=f"round {turn + 3}/8",
        step_ms=latencies(torch_steps, 25.9, turn, (12, 51)),
        steps_done=256 + turn * 128 + torch_steps,
        progress=(256 + turn * 128 + torch_steps) / 1024,
        tok_s=38.57 + noise(turn, 6),
    )
    rounds = turn + (2 if torch_runs else 3)
    llama = replace(
        LLAMACPP,
        state="ready" if torch_runs else "running",
        phase="waiting" if torch_runs else f"timing {rounds}/8",
        round_label=f"round {rounds}/8",
        step_ms=latencies(llama_steps, 16.4, 10 + rounds, (3, 90, 91)),
        steps_done=(rounds - 1) * 128 + llama_steps,
        progress=((rounds - 1) * 128 + llama_steps) / 1024,
    )
    return replace(
        LIVE,
        elapsed_s=LIVE.elapsed_s + ms / 1000,
        engines=(torch, llama),
        gpus=(gpu_at(ms // 100),),
    )


def gpu_at(last: int) -> GpuView:
    history = tuple(sample(i) for i in range(last, last + 240))
    return GpuView(device=H100, latest=history[-1], history=history)
