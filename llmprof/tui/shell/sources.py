"""Where every number of each page is from: source, pass, interval, formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

_NONE: Final = "none: one value"
_ROUNDS: Final = "95 %, bootstrap over rounds, from 5 rounds on"
_RATIO: Final = (
    "95 %: Student over batches of rounds (default), over process pairs (--processes),"
    " or bootstrap (--rounds)"
)
_TIMING: Final = "timing pass: nothing attached; of a recording its untraced second run, else n/a"
_TRACED: Final = "traced pass: tracers attached, so as traced; decode steps that count"
_SAMPLED: Final = "sampled rounds: kernels traced while the GPU's counters are read"
_CUPTI: Final = "CUPTI activity records; of an opened trace the rows of its file"
_STAMPS: Final = (
    "clock reads of the engine's process when each token is there; of a recording or an opened"
    " trace its step ranges, else steps found in the GPU's work"
)
_NVML: Final = "NVML, a sample each 0.1 s, the whole GPU"


@dataclass(frozen=True)
class Number:
    """One number or column of a page."""

    name: str
    source: str
    """What recorded it."""
    taken: str
    """In which pass, over what."""
    interval: str
    """What an interval beside it is, or why there is none."""
    formula: str
    field: str = ""
    """Of ``EngineView``, where the page shows that value: the dialog shows it too."""
    scale: float = 1.0
    unit: str = ""
    less: float = 0.0
    """Taken off the field's value first."""


_TOK_S: Final = Number(
    "tok/s", _STAMPS, _TIMING, _ROUNDS, "median over rounds of steps × batch / decode time",
    "tok_s", unit="tok/s",
)  # fmt: skip
_TTFT: Final = Number(
    "TTFT", _STAMPS, _TIMING, "in --json: bootstrap over rounds",
    "first token − start of prefill; median over rounds", "ttft_ms", unit="ms",
)  # fmt: skip
_PREFILL: Final = Number(
    "prefill", _STAMPS, _TIMING, "in --json: bootstrap over rounds",
    "prompt tokens × batch / TTFT; median over rounds", "prefill_tok_s", unit="tok/s",
)  # fmt: skip
_ITL: Final = Number(
    "ITL p50 … max", _STAMPS, _TIMING, "none: percentiles of all steps",
    "token − the token before it, of all decode steps of all rounds", "itl_p50_ms", unit="ms",
)  # fmt: skip
_MODELLED: Final = Number(
    "modelled GB/s", "sizes of the engine's packed weights and of its KV cache", _TIMING, _NONE,
    "(weights + K and V of all sequences) × steps a second of tok/s; GB is 1e9 bytes",
    "bandwidth_gb_s", unit="GB/s",
)  # fmt: skip
_OF_PEAK: Final = Number(
    "of peak", "NVML: memory clock and bus width", _TIMING, _NONE,
    "modelled GB/s / (memory clock × 2 × bus width / 8)", "roofline_share", 100.0, "%",
)  # fmt: skip
_MEASURED: Final = Number(
    "measured GB/s", "NVML GPM: share of cycles in which DRAM was busy (Hopper and newer)",
    _TIMING, "none: mean of the samples", "that share × peak; samples while decoding",
    "measured_gb_s", unit="GB/s",
)  # fmt: skip
_JOULE: Final = Number(
    "J/token", "NVML's energy counter, the whole GPU", _TIMING, _NONE,
    "energy while decoding / tokens of all sequences", "joule_per_token", unit="J",
)  # fmt: skip
_TRACING: Final = Number(
    "tracing cost", _STAMPS, "timing and traced pass, the same positions", _NONE,
    "median traced step / median timing step − 1", "slowdown", scale=100.0, unit="%", less=1.0,
)  # fmt: skip
_STEPS: Final = Number(
    "steps", _STAMPS, _TIMING, _NONE, "decode steps of all finished timing rounds", "steps_done"
)
_BUSY: Final = Number(
    "GPU busy", _CUPTI, _TRACED, "none: means",
    "length of the union of kernels, copies and sets on the primary GPU / step",
)  # fmt: skip
_IDLE: Final = Number("idle", _CUPTI, _TRACED, "none: means", "step − busy; n/a if work was lost")
_KERNELS: Final = Number(
    "kernels", _CUPTI, _TRACED, "none: median", "kernels of a step, on all GPUs of the engine"
)
_RATIO_OF: Final = Number(
    "ratio", _STAMPS, _TIMING, _RATIO, "exp of the mean of log (tok/s of B / tok/s of A) of pairs"
)
_GPU: Final = Number(
    "GPU panel",
    _NVML,
    "now; of a run that is over its timing rounds, else its traced ones, medians",
    _NONE,
    "as read",
)
_COST: Final = Number(
    "ms a step", _STAMPS, "timing pass at the traced positions; else as traced", "none: mean",
    "mean decode step",
)  # fmt: skip
_PARTS: Final = Number(
    "parts", _CUPTI, _TRACED, "none: means",
    "time by category, overlapping work counts for what began first; idle = untraced step −"
    " kernels (modelled), or step − busy (as traced)",
)  # fmt: skip

SOURCES: Final[Mapping[str, Sequence[Number]]] = {
    "steps": (
        _TOK_S, _TTFT, _ITL, _PREFILL, _MODELLED, _OF_PEAK, _JOULE, _TRACING, _STEPS,
        Number("step latency", _STAMPS, "the round that is named there (r: another)",
               "none: single steps", "token − the token before; ▲ over 1.5 × median"),
        _BUSY, _IDLE, _KERNELS, _GPU,
    ),
    "summary": (
        _TOK_S, _RATIO_OF, _TTFT, _ITL, _PREFILL, _MODELLED, _OF_PEAK, _MEASURED, _JOULE,
        _TRACING, _STEPS, _BUSY, _IDLE, _KERNELS,
    ),
    "timeline": (
        Number("steps", _STAMPS, "the round on show (r: another); found steps: the GPU's work",
               "none: single steps", "token − the token before; × median of its decode steps"),
        Number("kernels row", _CUPTI, _TRACED, "none: single kernels",
               "exact time of each category in each cell; letters as often as its share"),
        replace(_BUSY, taken="traced round, what is in view"),
        replace(_IDLE, taken="traced round, what is in view"),
        Number("duration", _CUPTI, "traced round, one execution", "none: single value",
               "end − start; p50, p95, max of all executions of that name in the round"),
        Number("cause of a gap", "CUDA calls where traced (--trace full), host samples",
               "traced pass", "none", "time of the gap by what the host did meanwhile; without"
               " calls the shares of all gaps of its sort (docs/host-stacks.md)"),
        Number("host row", "py-spy samples at --host-rate, dated by the metronome",
               "traced pass", "half a tick on either side", "kind of the innermost known frame"),
        Number("DRAM, SM", "PM counters of the GPU", _SAMPLED,
               "kernel: 95 % of the fit", "samples fitted to kernels; else per step; else NVML"),
        Number("SM clock, power", _NVML, "the whole run", _NONE, "as read, held for 1 s at most"),
    ),
    "compare": (
        replace(_RATIO_OF, name="verdict"), _COST, _PARTS,
        Number("change", _CUPTI, "as the basis says (b)", "none: means", "B − A, ms a step"),
        Number("executions", _CUPTI, _TRACED, "none: means", "executions / steps"),
        Number("ms of a kernel", _CUPTI, _TRACED, "none: means",
               "sum of durations / steps; overlapping kernels count in full"),
        Number("by purpose", _CUPTI, _TRACED, "none: means",
               "sum of durations of a role; roles from the order in a layer (docs/findings.md)"),
        Number("GB/s", "PM counters, else sizes of packed weights", _SAMPLED,
               "memory page: 95 % of the fit", "fitted DRAM bytes / time; ~ packed bytes / time"),
    ),
    "host": (
        Number("causes", "CUDA calls where traced, else host samples", _TRACED, "none",
               "idle time of a step by what the host did meanwhile; adds up to idle"),
        Number("ms of a frame", "py-spy samples at --host-rate", _TRACED,
               "none; under 20 samples marked as too few", "share of samples × ms a step"),
        Number("ms a step", "py-spy samples", _TRACED, "none", "self time of functions that both"
               " engines have, B − A"),
    ),
    "memory": (
        Number("share", _CUPTI, _SAMPLED, "none: means", "time of the kernel / mean step"),
        Number("GB/s", "PM counters: DRAM busy, each 100 to 200 µs", _SAMPLED,
               "± half of 95 %, of the fit", "least squares: samples = sum of kernels' rates × the"
               " time of each kernel in each sample"),
        Number("of a copy", "a device-to-device copy before the run", "before the run", _NONE,
               "GB/s / what the copy reached, bytes read + written"),
        Number("MB", "the same fit", _SAMPLED, "as GB/s", "GB/s × mean duration of a launch"),
        Number("µs", _CUPTI, _SAMPLED, "none", "median duration of a launch"),
        Number("µs/step", "the same fit", _SAMPLED, "as GB/s",
               "share × step × (1 − of a copy / 95 %), products with weights only"),
        Number("along it", "the same fit, in parts of a kernel", _SAMPLED, "in --json",
               "GB/s of each part of the kernel's own time"),
        Number("R²", "the same fit", _SAMPLED, "none", "1 − residuals / variance of the samples"),
    ),
    "ranks": (
        Number("wait", _CUPTI, _TRACED, "none: means; ≤: a bound, of a fused kernel",
               "the last rank's start of a collective − the own start"),
        Number("transfer", _CUPTI, _TRACED, "none: means; ≤: a bound, of a fused kernel",
               "own end − the last rank's start"),
        Number("exposed", _CUPTI, _TRACED, "none: means", "collectives with no other work beside"),
        Number("compute, idle", _CUPTI, _TRACED, "none: means", "other work; step − all work"),
        Number("late", _CUPTI, _TRACED, "none: medians",
               "how long all others waited for this rank alone"),
        Number("critical", _CUPTI, _TRACED, "none", "share of steps in which it was the latest"),
        Number("clocks", "ends of collectives", _TRACED, "proved bound",
               "no rank ends a collective before all have started it"),
        Number("bus GB/s", "bytes of the model's shape", _TRACED, "none: medians",
               "bytes × 2 (n − 1) / n / transfer, as nccl-tests has it"),
        Number("NVLink", "NVML: speed of the active links", _TRACED, "none",
               "bus GB/s / what all links carry in one direction; GPU rows: that sum"),
        Number("behind", _CUPTI, "traced pass, kernels that all processes run", "95 % of kernels",
               "start of the k-th like kernel − its earliest start among the GPUs"),
        Number("GPU rows", _NVML, _TRACED, "none: means", "as read; DRAM, SM: PM counters"),
    ),
    "findings": (
        replace(_RATIO_OF, name="verdict"), _COST, _PARTS,
        Number("ms/token", _CUPTI, _TRACED, "none; the confidence says how sure",
               "what a decode step would be shorter: under each finding"),
        Number("%", _CUPTI, _TRACED, "none", "ms/token / ms a step"),
        Number("confidence", "what the finding rests on", "-", "-",
               "high: measured; medium: modelled or in part; low: a hint. Why: under each one"),
    ),
    "sweep": (
        Number("step, ms", _STAMPS, "timing pass of each point's run", "bars: 95 %, as tok/s has",
               "batch × 1000 / tok/s; points that repeat: one place between their bounds"),
        Number("tok/s", _STAMPS, "timing pass of each point's run", _ROUNDS,
               "median over rounds of steps × batch / decode time, all sequences"),
        Number("TTFT, ITL p99", _STAMPS, "timing pass of each point's run", "TTFT: 95 %, rounds",
               "as on the page of the run (enter)"),
        Number("GB/s", "modelled: sizes of weights and KV cache; measured: NVML GPM",
               "timing pass of each point's run", _NONE, "as on the page of the run (enter)"),
        Number("idle, categories", _CUPTI, "traced pass of each point's run", "none: means",
               "ms a step by category; idle = step − busy; as traced"),
        Number("fit", "the places of a curve", "as the metric", "95 %, Student's t, from 4 places",
               "least squares: step = a + b × positions; R² and worst residual beside it"),
        Number("KV bytes", "the fit and the model's shape", "as the metric", "as the fit",
               "b over the time of a byte of the weights, beside what the model says"),
    ),
    "text": (
        Number("text", "tokens of the engine", "first complete timing round", "none",
               "decoded with the model's tokenizer"),
    ),
    "log": (
        Number("log", "llmprof's own messages", "the whole run", "none",
               "the engines' own logs are in the run file"),
    ),
}  # fmt: skip
