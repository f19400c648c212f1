"""PyTorch programs (``record_targets.py``), recorded: against what they know, and kernel by kernel
against torch.profiler.

Parts ``loop``, ``generate``, ``static`` and ``bandwidth`` of ``run_record.py``.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from recorded_truth import (
    Ahead,
    Launches,
    Recorded,
    agree,
    clock,
    matched_share,
    phases_of,
    say,
    told,
)

from llmprof.analysis.bandwidth.kept import kept_bandwidth
from llmprof.analysis.bandwidth.kernels import KernelBandwidth
from llmprof.analysis.view.opening import open_run
from llmprof.records.steps import StepChoice, counted
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.rows import TraceRows

TARGETS = str(Path(__file__).with_name("record_targets.py"))


def profiled(
    target: str, folder: Path, number: int, *words: str, **turn: str
) -> dict[str, Any] | None:
    """The truth of a target under torch.profiler: phase → its kernels in each repeat."""
    out = folder / "-".join(["profile", target, *words, str(number)])
    return told([sys.executable, TARGETS, target, *words, "--profile", str(out)], **turn)


PROCESSES = 2
"""Of each tool, in turns: a process has its own clocks and its own memory."""


def start(ahead: Ahead, folder: Path, target: str, *words: str) -> None:
    """A torch program, recorded and under torch.profiler, ``PROCESSES`` times each."""
    name = "-".join([target, *words])
    for number in range(PROCESSES):
        label = f"{name}-{number}" if number else name
        ahead.start(
            name,
            partial(Recorded, folder, label, sys.executable, TARGETS, target, *words, **ahead.turn),
        )
        seen = partial(profiled, target, folder, number, *words, **ahead.turn)
        ahead.start(f"{name} seen", seen)


def loop(folder: Path, ahead: Ahead) -> None:
    runs = [run for run in ahead.of("loop") if run.truths() and run.processes and run.data]
    seen = ahead.of("loop seen")
    recorded: dict[str, list[list[Launches]]] = defaultdict(list)
    for number, run in enumerate(runs):
        (process,) = run.processes
        rows = run.rows(process)
        for phase in ("eager", "graph"):
            recorded[phase].append(phases_of(run, rows, run.truths()[0], phase))
        if number:
            continue
        say(process.ranges >= 410, f"loop: NVTX ranges {process.ranges}, of 400 steps, 10 phases")
        say(
            matched_share(rows) == 1.0,
            f"loop: kernels with their launching call {matched_share(rows):.4f}"
            f" of {process.kernels}",
        )
        clock(rows, "loop")
        steps = sum(sum(counted(r.labels, r.steps)) for r in run.data.rounds)
        print(f"       loop: steps from the ranges {steps}, rounds {len(run.data.rounds)}")
        detected = open_run(run.path, StepChoice("detect"))
        count = sum(sum(counted(r.labels, r.steps)) for r in detected.rounds)
        say(count >= 400, f"loop: without its ranges {count} steps detected, of 406 and more")
    for phase in recorded if seen else ():
        agree(f"loop {phase}", recorded[phase], [truth[phase] for truth in seen])


def generate(folder: Path, ahead: Ahead, *words: str) -> None:
    name = "-".join(["generate", *words])
    runs = [run for run in ahead.of(name) if run.truths() and run.processes and run.data]
    ours: list[list[Launches]] = []
    for number, run in enumerate(runs):
        truth = run.truths()[0]
        process = max(run.processes, key=lambda p: p.kernels)
        rows = run.rows(process)
        ours.append(phases_of(run, rows, truth, "generate"))
        if number == 0:
            generated(name, run, truth, rows, process.kernels)
    seen = [truth["generate"] for truth in ahead.of(f"{name} seen")]
    if ours and seen:
        agree(name, ours, seen)


def generated(
    name: str, run: Recorded, truth: dict[str, Any], rows: TraceRows, kernels: int
) -> None:
    """Ranges, steps and calls of one recording of transformers' generate."""
    say(len(run.processes) == 1, f"{name}: processes with kernels {len(run.processes)}")
    with RunFileReader(run.path) as reader:
        ranges = reader.ranges()
    texts = Counter(ranges.texts[int(n)][1] for n in ranges.text)
    kinds = Counter(text.split(" ")[0] for text in texts.elements())
    marked = truth["marked"]
    decode = [text for text in texts if text.startswith("decode ")]
    # torch.compile runs range_push once more while it traces: it is a function of its graphs.
    twice = [text for text in decode if texts[text] > 1]
    say(
        len(decode) == marked,
        f"{name}: forwards marked {len(decode)}, of {marked} that the program counted in"
        f" {3 + len(truth['phases'])} calls of 40 tokens; marked again while it was compiled:"
        f" {twice[:5]}; all ranges: {dict(kinds)}",
    )
    say(
        matched_share(rows) == 1.0,
        f"{name}: kernels with their launching call {matched_share(rows):.4f} of {kernels}",
    )


SUM_MB, PRODUCT_MB = 268.44, 90.18
"""What a launch reads in the target ``bandwidth``; its other kernels move less than 1 MB."""


def bandwidth(folder: Path, ahead: Ahead) -> None:
    """``--bandwidth`` on a program of its own, against the bytes that it says it moves."""
    run = Recorded(
        folder, "bandwidth", sys.executable, TARGETS, "bandwidth", options=("--bandwidth",)
    )
    if run.data is None or not run.truths() or not run.data.engines:
        say(False, f"bandwidth: nothing recorded: {run.said[-400:]}")
        return
    print("       " + "; ".join(line[:200] for line in run.said.splitlines()), flush=True)
    for missing in run.data.missing:
        if missing.name in ("pm", "dram"):
            say(False, f"bandwidth: {missing.scope}: {missing.reason}")
    (engine,) = run.data.engines
    with RunFileReader(run.path) as reader:
        kept = kept_bandwidth(reader, run.data, engine)
    if not isinstance(kept, KernelBandwidth):
        say(False, f"bandwidth: no fit is kept: {kept}")
        return
    print(
        f"       {kept.samples} samples of {kept.interval_ns / 1e3:.0f} µs over {kept.steps} steps;"
        f" R² {kept.r2:.5f}; step {kept.step_ns / 1e6:.3f} ms; sampled {kept.mean_gb_s:.1f},"
        f" fitted {kept.fitted_gb_s:.1f}, idle {kept.idle_gb_s:.1f} GB/s;"
        f" copy {kept.ceiling_gb_s}",
        flush=True,
    )
    known_mb = run.truths()[0]["mb_a_step"]
    launches: Counter[float] = Counter()
    for kernel in kept.kernels:
        mb = SUM_MB if "reduce_kernel" in kernel.name else PRODUCT_MB
        if not isinstance(kernel.mb_per_launch, float) or kernel.mb_per_launch < 10:
            print(f"       {kernel.short_name[:60]}: {kernel.mb_per_launch}", flush=True)
            continue
        launches[mb] += kernel.launches_per_step
        off = kernel.mb_per_launch / mb - 1
        say(
            abs(off) < 0.02,
            f"bandwidth: {kernel.short_name[:40]}: {kernel.mb_per_launch:.2f} MB a launch"
            f" ({kernel.low_mb:.2f} to {kernel.high_mb:.2f}), known {mb:.2f}: {off:+.2%};"
            f" {kernel.dram_gb_s:.0f} GB/s, {kernel.launches_per_step:.1f} a step",
        )
    say(
        launches == {SUM_MB: 2, PRODUCT_MB: 16},
        f"bandwidth: kernels with a value, by MB and launches a step: {dict(launches)}",
    )
    total_mb = kept.mean_gb_s * kept.step_ns / 1e6
    off = total_mb / known_mb - 1
    say(
        abs(off) < 0.02,
        f"bandwidth: {total_mb:.1f} MB a step by the counters, {known_mb:.1f} known: {off:+.2%}",
    )
    apart = kept.fitted_gb_s / kept.mean_gb_s - 1
    say(abs(apart) < 0.01, f"bandwidth: kernels and idle against the samples: {apart:+.3%}")


def static(folder: Path, ahead: Ahead) -> None:
    generate(folder, ahead, "static")
