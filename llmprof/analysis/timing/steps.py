"""TTFT, ITL, tok/s and energy of one engine, from its timing rounds.

``tok_s`` is the median over complete rounds of tokens per second while decoding. An incomplete
round (crash, Ctrl-C) is left out of the rates, since it decoded at shallower context, but each of
its finished steps is a step: they stay in the ITL samples, and the round is flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from llmprof.analysis.timing.conditions import gpu_index, missing_reason
from llmprof.analysis.timing.stats import Distribution, Estimate, distribution, estimate
from llmprof.records import EngineRecord, Maybe, RoundRecord, RunData, Unavailable
from llmprof.records.steps import counted

NS = 1e9

RUNS_FREE = "runs free: the host issues steps ahead of the device, single steps have no end"

NO_REQUEST = "the recording does not know when a request began: its steps are NVTX ranges"


@dataclass(frozen=True)
class RoundSteps:
    """One timing round, in numbers."""

    index: int
    complete: bool
    start_ns: int
    """Since the start of the run."""
    steps: int
    """Finished decode steps."""
    tokens: int
    """Tokens of those steps: steps × batch."""
    ttft_ns: int | None
    """From the start to the end of prefill; ``None``: prefill did not end."""
    decode_ns: int | None
    """From the end of prefill to the last token on the host; ``None``: no step finished."""
    step_ns: tuple[int, ...]
    """Latency of each step, empty for an engine that runs free."""
    tok_s: Maybe
    prefill_tok_s: Maybe
    energy_j: Maybe
    """While decoding."""
    prefill_energy_j: float | None
    """``None``: not counted."""
    process: int
    """Process id of the worker; a run may have several of an engine, one after another."""


@dataclass(frozen=True)
class Slowdown:
    """What the tracers cost: traced median step / timing median step."""

    ratio: Maybe
    traced_steps: int
    traced_step_ns: Maybe
    """Median step of the traced pass."""


@dataclass(frozen=True)
class EngineSteps:
    """One engine's timing pass."""

    rounds: tuple[RoundSteps, ...]
    tok_s: Estimate
    ttft_ms: Estimate
    prefill_tok_s: Estimate
    tok_s_per_sequence: Estimate
    """``tok_s`` / sequences decoded at once: what one user sees."""
    tpot_ms: Estimate
    """Time per output token after the first: decode time / steps of each round."""
    itl_ms: Distribution | Unavailable
    """Gaps between tokens."""
    step_ns: Maybe
    """Median step. Of an engine that runs free: median over rounds of decode time / steps."""
    joule_per_token: Maybe
    """Energy of all complete rounds while decoding / their tokens; of the whole GPU, idle power
    included."""
    joule_per_total_token: Maybe
    """Energy of prefill and decoding / tokens of prompt and output."""
    mean_power_w: Maybe
    """Energy while decoding / decode time: of the whole GPU."""
    slowdown: Slowdown


def engine_steps(data: RunData, engine: EngineRecord) -> EngineSteps:
    """All timing-pass numbers of one engine."""
    rounds = timing_rounds(data, engine)
    free = any(not r.synchronous for r in data.rounds_of(engine.engine_id))
    nothing = _why_nothing(data, engine)
    samples = [step / 1e6 for r in rounds for step in r.step_ns]
    return EngineSteps(
        rounds=rounds,
        tok_s=_over([r.tok_s for r in rounds], nothing),
        ttft_ms=_over(
            [r.ttft_ns / 1e6 for r in rounds if r.ttft_ns is not None],
            NO_REQUEST if rounds and data.info.source == "recorded" else nothing,
        ),
        prefill_tok_s=_over([r.prefill_tok_s for r in rounds], nothing),
        tok_s_per_sequence=_over([_each(r) for r in rounds], nothing),
        tpot_ms=_over([_tpot_ms(r) for r in rounds], nothing),
        itl_ms=distribution(samples) if samples else Unavailable(RUNS_FREE if free else nothing),
        step_ns=_median_step(rounds, None, nothing),
        joule_per_token=_joule_per_token(data, engine, rounds, nothing),
        joule_per_total_token=_joule_per_total_token(data, engine, rounds, nothing),
        mean_power_w=_mean_power(data, engine, rounds, nothing),
        slowdown=_slowdown(data, engine, rounds),
    )


def timing_rounds(data: RunData, engine: EngineRecord) -> tuple[RoundSteps, ...]:
    """The engine's rounds of the timing pass, in the order they were taken."""
    return tuple(round_steps(data, record) for record in data.rounds_of(engine.engine_id))


def round_steps(data: RunData, record: RoundRecord) -> RoundSteps:
    """One round, in numbers."""
    batch = batch_size(data, record)
    decode_ns, steps = _decode_ns(record), counted_latencies(record)
    ttft_ns = None
    if record.prefill_end_ns is not None and data.info.source != "recorded":
        ttft_ns = record.prefill_end_ns - record.prefill_start_ns
    return RoundSteps(
        index=record.index,
        complete=record.complete,
        start_ns=record.start_ns - data.origin_ns,
        steps=len(steps),
        tokens=len(steps) * batch,
        ttft_ns=ttft_ns,
        decode_ns=decode_ns,
        step_ns=steps if record.synchronous else (),
        tok_s=_rate(record, decode_ns, batch),
        prefill_tok_s=_prefill_rate(data, ttft_ns, batch),
        energy_j=_energy(record),
        prefill_energy_j=(
            None if record.prefill_energy_mj is None else record.prefill_energy_mj / 1000
        ),
        process=record.pid,
    )


def counted_latencies(record: RoundRecord) -> tuple[int, ...]:
    """Latencies of the steps that count: all of a round that llmprof drove."""
    every = step_latencies(record.stamps_ns)
    return tuple(
        ns for ns, counts in zip(every, counted(record.labels, record.steps), strict=True) if counts
    )


def step_latencies(stamps_ns: Sequence[int]) -> tuple[int, ...]:
    """Time from each stamp to the next, ns."""
    return tuple(end - start for start, end in pairwise(stamps_ns))


def workload_number(data: RunData, key: str) -> int | None:
    """An integer of the workload; ``None`` in a file that has none (made by nsys)."""
    value = data.info.workload.get(key)
    return value if isinstance(value, int) else None


def batch_size(data: RunData, record: RoundRecord) -> int:
    """Sequences decoded at once, from the workload or else from the round's tokens."""
    return workload_number(data, "batch") or len(record.tokens) or 1


def _decode_ns(record: RoundRecord) -> int | None:
    if not record.steps:
        return None
    # Stamps of a free-running engine are issue times; only the round's end is the device's.
    end = record.stamps_ns[-1] if record.synchronous else record.end_ns
    return end - record.stamps_ns[0]


def _rate(record: RoundRecord, decode_ns: int | None, batch: int) -> Maybe:
    if not record.complete:
        return Unavailable(f"the round ended early, after {record.steps} decode steps")
    if not decode_ns or decode_ns < 0:
        return Unavailable("the round has no decode step")
    return record.steps * batch / decode_ns * NS


def _prefill_rate(data: RunData, ttft_ns: int | None, batch: int) -> Maybe:
    prompt_len = workload_number(data, "prompt_len")
    if prompt_len is None:
        return Unavailable("the file does not say how long the prompt was")
    if not ttft_ns or ttft_ns < 0:
        return Unavailable("prefill did not finish")
    return prompt_len * batch / ttft_ns * NS


def _energy(record: RoundRecord) -> Maybe:
    if record.energy_mj is None:
        return Unavailable("no energy counter was read")
    start, end = record.energy_mj
    if end <= start:
        return Unavailable("the energy counter did not advance: the round was too short for it")
    return (end - start) / 1000


def _over(values: Sequence[Maybe], nothing: str) -> Estimate:
    """Median of the values that are there; else the first one's reason, or ``nothing``."""
    there = [v for v in values if not isinstance(v, Unavailable)]
    if there:
        return estimate(there)
    return Estimate.missing(next((v.reason for v in values if isinstance(v, Unavailable)), nothing))


def _why_nothing(data: RunData, engine: EngineRecord) -> str:
    if engine.state == "failed":
        return f"{engine.label} failed before a decode step was timed"
    recorded = data.info.source == "recorded"
    reason = data.why_missing("run", "timing pass") if recorded else None
    return reason or "no decode step was timed"


def _median_step(rounds: Sequence[RoundSteps], first: int | None, nothing: str) -> Maybe:
    """Median over all steps (the ``first`` of each round only); per round where it runs free."""
    steps = [step for r in rounds for step in r.step_ns[:first]]
    if steps:
        return float(median(steps))
    # Unlike a step, a mean over a round is only comparable when the round ran to its end.
    means = [r.decode_ns / r.steps for r in rounds if r.complete and r.decode_ns]
    return median(means) if means else Unavailable(nothing)


def _joule_per_token(
    data: RunData, engine: EngineRecord, rounds: Sequence[RoundSteps], nothing: str
) -> Maybe:
    energy, tokens, reason = 0.0, 0, nothing
    for r in rounds:
        if isinstance(r.energy_j, Unavailable):
            reason = r.energy_j.reason
        elif r.complete:
            energy += r.energy_j
            tokens += r.tokens
    if tokens:
        return energy / tokens
    if engine.info is not None:
        device = gpu_index(engine)
        if device is None:
            return Unavailable("energy comes from NVML, which covers GPUs only")
        reason = missing_reason(data, ("run", f"gpu{device}", engine.label), "energy") or reason
    return Unavailable(reason)


def _each(r: RoundSteps) -> Maybe:
    if isinstance(r.tok_s, Unavailable) or not r.steps:
        return r.tok_s
    return r.tok_s * r.steps / r.tokens


def _tpot_ms(r: RoundSteps) -> Maybe:
    if not r.complete:
        return Unavailable(f"the round ended early, after {r.steps} decode steps")
    if not r.decode_ns or not r.steps:
        return Unavailable("the round has no decode step")
    return r.decode_ns / r.steps / 1e6


def _joule_per_total_token(
    data: RunData, engine: EngineRecord, rounds: Sequence[RoundSteps], nothing: str
) -> Maybe:
    prompt = workload_number(data, "prompt_len")
    energy, tokens = 0.0, 0
    for r in rounds:
        if isinstance(r.energy_j, Unavailable) or not r.complete or not prompt:
            continue
        if r.prefill_energy_j is not None:
            energy += r.prefill_energy_j + r.energy_j
            # Prefill gives the first token of each sequence; the steps give the rest.
            tokens += r.tokens + (prompt + 1) * (r.tokens // max(1, r.steps))
    if tokens:
        return energy / tokens
    decoded = _joule_per_token(data, engine, rounds, nothing)
    if isinstance(decoded, Unavailable):
        return decoded
    return Unavailable("the energy of prefill was not read")


def _mean_power(
    data: RunData, engine: EngineRecord, rounds: Sequence[RoundSteps], nothing: str
) -> Maybe:
    energy, seconds = 0.0, 0.0
    for r in rounds:
        if r.complete and r.decode_ns and not isinstance(r.energy_j, Unavailable):
            energy += r.energy_j
            seconds += r.decode_ns / NS
    if seconds:
        return energy / seconds
    decoded = _joule_per_token(data, engine, rounds, nothing)
    return decoded if isinstance(decoded, Unavailable) else Unavailable(nothing)


def _slowdown(data: RunData, engine: EngineRecord, timing: Sequence[RoundSteps]) -> Slowdown:
    records = data.rounds_of(engine.engine_id, "traced")
    traced = tuple(round_steps(data, r) for r in records)
    count = sum(r.steps for r in traced)
    if not count:
        no = data.no_traced_pass(engine.label)
        return Slowdown(no, 0, no)
    traced_step = _median_step(traced, None, "the traced pass did not finish")
    # Steps get slower with the context: compare the same positions of both passes.
    depth = max(r.steps for r in traced)
    nothing = "the timing pass has no step to compare with"
    if not timing and data.info.source != "driven":
        nothing = data.why_missing("run", "timing pass") or nothing
    timed_step = _median_step(timing, depth, nothing)
    if isinstance(traced_step, Unavailable):
        return Slowdown(traced_step, count, traced_step)
    if isinstance(timed_step, Unavailable):
        return Slowdown(timed_step, count, traced_step)
    if timed_step <= 0:
        return Slowdown(Unavailable("the clock did not advance"), count, traced_step)
    return Slowdown(traced_step / timed_step, count, traced_step)
