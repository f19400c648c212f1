"""All results of one run as one frozen tree: what JSON, table and TUI show is read from here."""

from __future__ import annotations

from dataclasses import dataclass

from llmprof.analysis.bandwidth.roofline import Bandwidth, bandwidth
from llmprof.analysis.timing.agreement import (
    Determinism,
    TokenAgreement,
    agreement_to_first,
    determinism,
)
from llmprof.analysis.timing.compare import Comparison, compare_to_first, workload_text
from llmprof.analysis.timing.conditions import Conditions, condition_warnings, conditions
from llmprof.analysis.timing.cpu import CpuConditions, cpu_conditions, cpu_warnings
from llmprof.analysis.timing.steps import EngineSteps, engine_steps
from llmprof.records import (
    EngineInfo,
    EngineRecord,
    EngineState,
    Missing,
    RunData,
    RunState,
    Unavailable,
    Warned,
)

ONE_TOKEN = "tok/s counts one token a step: how many sequences a step decodes is not known"


@dataclass(frozen=True)
class Failure:
    """Why an engine ended."""

    kind: str
    """``crash``, ``exception``, ``oom``, ``hang``, ``missing-package``, ``input``."""
    message: str
    log_tail: str


@dataclass(frozen=True)
class EngineReport:
    """Everything about one engine. Text in it is as recorded: make it printable to show it."""

    engine_id: int
    label: str
    name: str
    state: EngineState
    failure: Failure | None
    info: EngineInfo | None
    load_s: float | None
    warmup_steps: int | None
    warmup_stable: bool | None
    steps: EngineSteps
    bandwidth: Bandwidth
    conditions: Conditions | Unavailable
    cpu: CpuConditions | Unavailable
    determinism: Determinism
    text: str | Unavailable
    tokens: tuple[tuple[int, ...], ...] | Unavailable
    """One row a sequence, of the first complete timing round."""


@dataclass(frozen=True)
class Report:
    """The results of one run; the first engine is the baseline of ``pairs``."""

    tool: str
    """``llmprof``, or the profiler whose file was opened."""
    tool_version: str
    """Of that program."""
    state: RunState
    message: str
    schedule: str
    workload: str
    """``prompt 7 · decode 128 · batch 1 · 8 rounds``."""
    file: str
    engines: tuple[EngineReport, ...]
    pairs: tuple[Comparison, ...]
    agreement: tuple[TokenAgreement, ...]
    warnings: tuple[Warned, ...]
    """Recorded during the run, then those that the analysis found."""
    missing: tuple[Missing, ...]


def build(data: RunData) -> Report:
    """Analyse a finished or running run."""
    engines = tuple(_engine(data, engine) for engine in data.engines)
    found = condition_warnings([(e.label, e.conditions) for e in engines])
    for engine in engines:
        found += cpu_warnings(engine.label, engine.cpu)
        if data.info.source == "recorded" and engine.steps.rounds:
            found.append(Warned(engine.label, ONE_TOKEN))
    return Report(
        tool=data.info.tool,
        tool_version=data.info.tool_version,
        state=data.info.state,
        message=data.info.message,
        schedule=data.info.schedule,
        workload=workload_text(data.info.workload),
        file=data.path,
        engines=engines,
        pairs=compare_to_first(data),
        agreement=agreement_to_first(data),
        warnings=tuple(dict.fromkeys([*data.warnings, *found])),
        missing=tuple(data.missing),
    )


def _engine(data: RunData, engine: EngineRecord) -> EngineReport:
    steps = engine_steps(data, engine)
    failure = None
    if engine.state == "failed":
        message = engine.failure or "no reason was recorded"
        tail = data.logs.get(engine.label, "")
        failure = Failure(engine.failure_kind or "exception", message, tail)
    return EngineReport(
        engine_id=engine.engine_id,
        label=engine.label,
        name=engine.name,
        state=engine.state,
        failure=failure,
        info=engine.info,
        load_s=None if engine.load_ns is None else engine.load_ns / 1e9,
        warmup_steps=engine.warmup_steps,
        warmup_stable=engine.warmup_stable,
        steps=steps,
        bandwidth=bandwidth(data, engine, steps),
        conditions=conditions(data, engine),
        cpu=cpu_conditions(data, engine),
        determinism=determinism(data, engine),
        text=_text(data, engine),
        tokens=_tokens(data, engine),
    )


def _text(data: RunData, engine: EngineRecord) -> str | Unavailable:
    if engine.text is not None:
        return engine.text
    if data.info.source != "driven":
        return Unavailable("llmprof did not drive this program: its tokens are not known")
    if engine.info is None:
        return Unavailable(f"{engine.label} did not load")
    return Unavailable("the model has no tokenizer, or no round was completed")


def _tokens(data: RunData, engine: EngineRecord) -> tuple[tuple[int, ...], ...] | Unavailable:
    for r in data.rounds_of(engine.engine_id):
        if r.complete and any(r.tokens):
            return tuple(tuple(row) for row in r.tokens)
    return Unavailable("no complete timing round")
