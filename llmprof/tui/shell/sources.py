"""Where the numbers of each page are from: source, pass, interval, formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

_TRACED: Final = "traced pass"
SOURCES: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "steps": (
        ("tok/s", "timing pass: median over rounds of steps × batch / decode time"),
        ("interval", "95 %, bootstrap over rounds, from 5 rounds on"),
        ("TTFT, ITL", "timing pass: start of prefill to first token; token to token"),
        ("GB/s", "modelled: packed weights + K and V of a step × steps a second"),
        ("J/token", "timing pass: NVML's energy counter / tokens, the whole GPU"),
        ("GPU", "NVML samples, latest; after a run those of the timing pass"),
    ),
    "summary": (
        ("tok/s", "timing pass, untraced; 95 % by bootstrap over rounds"),
        ("ratio", "paired rounds: 20 % trimmed mean of log ratios, bootstrap"),
        ("busy, idle", f"{_TRACED}: union of all work; step − busy; means"),
        ("tracing cost", "traced / timing median step, same positions"),
        ("bandwidth", "modelled: bytes of a step / time; measured: GPM, PM"),
    ),
    "timeline": (
        ("steps", "stamps of the round on show; × median: of its decode steps"),
        ("kernels", f"{_TRACED}: exact time of each category in each cell"),
        ("idle", "no kernel, copy or set on the engine's primary GPU"),
        ("cause", "API calls where traced, else host samples in gaps of its sort"),
        ("host", "py-spy samples of the traced pass, half a tick on either side"),
        ("DRAM", "PM samples (sampled round), step by step, else NVML"),
    ),
    "compare": (
        ("verdict", "timing pass: paired rounds, 95 % by bootstrap"),
        ("parts", f"{_TRACED}: mean step by category"),
        ("idle", "untraced mean step − traced work, same positions"),
        ("by purpose", "sum of durations by role, role by order in the step"),
        ("GB/s", "measured: PM samples fitted to kernels; ~ packed bytes / time"),
    ),
    "host": (
        ("causes", "idle time of the traced pass: API calls, else host samples"),
        ("shares", "of py-spy samples taken in decode steps of the traced pass"),
    ),
    "memory": (
        ("GB/s, MB", "sampled round: PM samples fitted to kernels, least squares"),
        ("interval", "95 %, of the fit"),
        ("of ceiling", "over what a copy reached on this GPU before the run"),
    ),
    "ranks": (
        ("wait", f"{_TRACED}: own start of a collective to the last rank's start"),
        ("transfer", "the last rank's start to the own end"),
        ("late", "how long all others waited for this rank alone; medians"),
        ("clocks", "bound: no rank ends a collective before all have started it"),
        ("GB/s", "bytes of the model's shape / transfer, as nccl-tests has it"),
    ),
    "findings": (
        ("ms a step", "timing pass at the traced positions; else as traced"),
        ("parts", f"{_TRACED}: mean step; idle = untraced step − kernels"),
        ("ms/token", "what a decode step would be shorter; how: under each finding"),
        ("confidence", "why: under each finding (docs/findings.md)"),
    ),
    "text": (("text", "tokens of the first complete timing round, decoded"),),
    "log": (("log", "the run's own messages; the engines' logs are in the run file"),),
}
