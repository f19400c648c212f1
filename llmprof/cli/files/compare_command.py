"""``llmprof compare A [B]``: why is one engine faster than the other, and did anything regress?

A and B are ``FILE`` or ``FILE:LABEL``. One file: its first engine against each other one. Two
files: the named engines, or every engine that both files have under the same label.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmprof.analysis.timing.compare import (
    Comparison,
    compare_engines,
    compare_runs,
    compare_to_first,
    find_engine,
)
from llmprof.analysis.view.falls import Fall, fall_between, timing_step_ns
from llmprof.analysis.view.metrics import MetricSide
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.cli.files.gate import Judgement, exit_code, judge_all, parse_gates
from llmprof.cli.files.opening import open_one
from llmprof.cli.files.step_choice import step_choice
from llmprof.config import check_target, locked
from llmprof.errors import LlmprofError, RunFileError, UsageError
from llmprof.plaintext import one_line
from llmprof.records import (
    Maybe,
    RunData,
)
from llmprof.records.steps import (
    AUTO_STEPS,
    StepChoice,
)
from llmprof.runfile.reader import RunFileReader

_LABELLED = re.compile(r"(.*?\.(?:sqlite|nsys-rep|json\.gz|json|gz)):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Side:
    """One argument: a run and, where given, an engine of it."""

    path: Path
    label: str | None
    data: RunData


@dataclass(frozen=True)
class Found:
    """One pair: the ratio, the reasons, and both sides for the gates."""

    pair: Comparison
    fall: Fall
    a: MetricSide
    b: MetricSide


def compare(arguments: argparse.Namespace) -> int:
    gates = parse_gates(arguments.fail_on)
    steps = step_choice(arguments)
    first = _side(arguments.a, steps)
    if arguments.baseline is not None:
        found = _with_baseline(arguments, first, steps)
    elif arguments.across:
        raise UsageError("--across goes with --baseline NAME")
    else:
        second = None if arguments.b is None else _second(arguments.b, first, steps)
        found = _one_file(first) if second is None else _two_files(first, second)
    judged = judge_all(gates, [(f.pair, f.a, f.b) for f in found])
    if arguments.json:
        _print_json(found, judged)
    else:
        _print_text(found)
    for item in judged:
        print(f"llmprof: gate {item.outcome}: {item.gate.text}: {item.line}", file=sys.stderr)
    _write_reports(arguments, found, judged)
    return exit_code(judged)


def _with_baseline(arguments: argparse.Namespace, run: Side, steps: StepChoice) -> list[Found]:
    """The run is B. Conditions that differ are a warning of every pair."""
    from llmprof.baselines import baseline_for

    if arguments.b is not None:
        raise UsageError("--baseline NAME is A: give one run to compare with it")
    kept, differ = baseline_for(arguments.baseline, run.data, arguments.across)
    found = _two_files(_side(str(kept.path), steps), run, force=arguments.across)
    told = tuple(f"other conditions: {text}" for text in differ)
    return [replace(f, pair=replace(f.pair, warnings=(*f.pair.warnings, *told))) for f in found]


def _write_reports(
    arguments: argparse.Namespace, found: list[Found], judged: list[Judgement]
) -> None:
    """``--junit FILE``; ``--summary-md [FILE]``, which a CI's job summary may be appended to."""
    if arguments.junit is None and arguments.summary_md is None:
        return
    from llmprof.exports.text.gate_reports import GateLine, junit, summary

    lines = [GateLine(j.gate.text, j.a, j.b, j.outcome, j.line) for j in judged]
    if arguments.junit is not None:
        _write(Path(arguments.junit), junit(lines), "w")
    if arguments.summary_md is not None:
        target = arguments.summary_md or os.environ.get("GITHUB_STEP_SUMMARY", "")
        if not target:
            raise UsageError("--summary-md: name a file, GITHUB_STEP_SUMMARY is not set")
        _write(Path(target), summary([f.pair for f in found], lines), "a")


def _write(path: Path, text: str, mode: str) -> None:
    if locked():
        check_target(path)
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as why:
        raise LlmprofError(f"{one_line(str(path))}: cannot be written: {why.strerror}") from None


def _side(text: str, steps: StepChoice) -> Side:
    """``FILE`` or ``FILE:LABEL``; a label may hold colons (``torch:cuda_graph=1``)."""
    path, label = Path(text), None
    if not path.exists() and (parts := _LABELLED.match(text)) is not None:
        path, label = Path(parts[1]), parts[2]
    path = open_one(path)
    with RunFileReader(path) as reader:
        driven = reader.knows_steps()
    data = open_run(path, AUTO_STEPS if driven else steps)
    if label is not None:
        find_engine(data, label)
    return Side(path, label, data)


def _second(text: str, first: Side, steps: StepChoice) -> Side:
    """B, which is easily taken for an engine's name."""
    try:
        return _side(text, steps)
    except RunFileError:
        if not any(engine.label == text for engine in first.data.engines):
            raise
        raise UsageError(
            f"{text} is an engine, not a file: llmprof compare {first.path}:ENGINE"
            f" {first.path}:{text}"
        ) from None


def _one_file(side: Side) -> list[Found]:
    if side.label is not None:
        raise UsageError("name a second engine: llmprof compare FILE:LABEL FILE:LABEL")
    if len(side.data.engines) < 2:
        raise UsageError(f"{side.data.shown_path} has one engine only: give a second file")
    trace = RunTrace(side.path, side.data)
    sides = [MetricSide(side.data, e, trace.engine(e.label)) for e in side.data.engines]
    pairs = zip(compare_to_first(side.data), trace.falls, sides[1:], strict=True)
    return [Found(pair, fall, sides[0], other) for pair, fall, other in pairs]


def _two_files(a: Side, b: Side, force: bool = False) -> list[Found]:
    if a.path.resolve() == b.path.resolve() and a.label and b.label:
        return [_within(a, a.label, b.label)]
    one, two = RunTrace(a.path, a.data), RunTrace(b.path, b.data)
    return [_across(a, one, left, b, two, right, force) for left, right in _label_pairs(a, b)]


def _label_pairs(a: Side, b: Side) -> list[tuple[str, str]]:
    left = [a.label] if a.label else [e.label for e in a.data.engines]
    right = [b.label] if b.label else [e.label for e in b.data.engines]
    if len(left) == len(right) == 1:
        return [(left[0], right[0])]
    common = [label for label in left if label in right]
    if not common:
        raise UsageError(
            f"no engine is in both files: {a.data.shown_path} has {', '.join(left)};"
            f" {b.data.shown_path} has {', '.join(right)}; name them as FILE:LABEL"
        )
    return [(label, label) for label in common]


def _within(side: Side, left: str, right: str) -> Found:
    data = side.data
    a, b = find_engine(data, left), find_engine(data, right)
    trace = RunTrace(side.path, data)
    sides = MetricSide(data, a, trace.engine(left)), MetricSide(data, b, trace.engine(right))
    return Found(compare_engines(data, a, b), _fall(*sides), *sides)


def _across(
    a: Side, one: RunTrace, left: str, b: Side, two: RunTrace, right: str, force: bool
) -> Found:
    pair = compare_runs(a.data, left, b.data, right, force=force)
    sides = (
        MetricSide(a.data, find_engine(a.data, left), one.engine(left)),
        MetricSide(b.data, find_engine(b.data, right), two.engine(right)),
    )
    return Found(pair, _fall(*sides), *sides)


def _fall(a: MetricSide, b: MetricSide) -> Fall:
    step_a: Maybe = timing_step_ns(a.data, a.engine.label, a.trace)
    return fall_between(a.trace, step_a, b.trace, timing_step_ns(b.data, b.engine.label, b.trace))


def _print_text(found: list[Found]) -> None:
    from llmprof.exports.text import pairing_table, roles_table
    from llmprof.exports.text.waterfall_table import render

    for number, item in enumerate(found):
        pair, fall = item.pair, item.fall
        if number:
            print()
        print(one_line(pair.verdict))
        if said := _sides(item):
            print(f"  {one_line(said)}")
        for warning in pair.warnings:
            print(f"  ! {one_line(warning)}")
        for line in (
            *render(fall),
            *roles_table.render(fall.roles),
            *pairing_table.render(fall.kernels),
        ):
            print(line)


def _sides(item: Found) -> str:
    """Which file is A and which B, where both engines have one label."""
    a, b = Path(str(item.a.data.shown_path)), Path(str(item.b.data.shown_path))
    if item.a.engine.label != item.b.engine.label or a == b:
        return ""
    one, two = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    return f"A is {item.a.engine.label} of {one}, B that of {two}"


def _print_json(found: list[Found], judged: list[Judgement]) -> None:
    from llmprof.exports.json.comparison import comparison_document, gate_document
    from llmprof.exports.json.report import to_text

    gates = [
        gate_document(
            j.gate.text, j.gate.metric, j.gate.below, j.gate.limit, j.a, j.b, j.outcome,
            j.value, j.low, j.high, j.line,
        )
        for j in judged
    ]  # fmt: skip
    document: dict[str, Any] = comparison_document([(f.pair, f.fall) for f in found], gates)
    sys.stdout.write(to_text(document))
