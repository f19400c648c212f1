"""``llmprof compare A [B]``: why is one engine faster than the other, and did anything regress?

A and B are ``FILE`` or ``FILE:LABEL``. One file: its first engine against each other one. Two
files: the named engines, or every engine that both files have under the same label.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmprof.analysis.timing.compare import Comparison, compare_runs, compare_to_first, find_engine
from llmprof.analysis.view.falls import Fall, fall_between, timing_step_ns
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.cli.files.gate import Gate, parse_gate
from llmprof.cli.files.opening import open_one
from llmprof.cli.files.step_choice import step_choice
from llmprof.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK, RunFileError, UsageError
from llmprof.records import (
    Maybe,
    RunData,
)
from llmprof.runfile.reader import RunFileReader
from llmprof.step_records import (
    AUTO_STEPS,
    StepChoice,
)

_LABELLED = re.compile(r"(.*?\.(?:sqlite|nsys-rep|json\.gz|json|gz)):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Side:
    """One argument: a run and, where given, an engine of it."""

    path: Path
    label: str | None
    data: RunData


def compare(arguments: argparse.Namespace) -> int:
    gates = [parse_gate(text) for text in arguments.fail_on]
    steps = step_choice(arguments)
    first = _side(arguments.a, steps)
    second = None if arguments.b is None else _second(arguments.b, first, steps)
    found = _one_file(first) if second is None else _two_files(first, second)
    if arguments.json:
        _print_json(found)
    else:
        _print_text(found)
    return _judged(gates, [pair for pair, _ in found])


def _judged(gates: list[Gate], pairs: list[Comparison]) -> int:
    """A line for every gate and pair; the worst of them is the exit code."""
    seen = set()
    for gate in gates:
        for pair in pairs:
            outcome, line = gate.judge(pair)
            seen.add(outcome)
            print(f"llmprof: gate {outcome}: {gate.text}: {line}", file=sys.stderr)
    if "failed" in seen:
        return EXIT_GATE
    return EXIT_INCONCLUSIVE if "inconclusive" in seen else EXIT_OK


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


def _one_file(side: Side) -> list[tuple[Comparison, Fall]]:
    if side.label is not None:
        raise UsageError("name a second engine: llmprof compare FILE:LABEL FILE:LABEL")
    if len(side.data.engines) < 2:
        raise UsageError(f"{side.data.shown_path} has one engine only: give a second file")
    falls = RunTrace(side.path, side.data).falls
    return list(zip(compare_to_first(side.data), falls, strict=True))


def _two_files(a: Side, b: Side) -> list[tuple[Comparison, Fall]]:
    if a.path.resolve() == b.path.resolve() and a.label and b.label:
        return [_within(a, a.label, b.label)]
    return [_across(a, left, b, right) for left, right in _label_pairs(a, b)]


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


def _within(side: Side, left: str, right: str) -> tuple[Comparison, Fall]:
    from llmprof.analysis.timing.compare import compare_engines

    data = side.data
    pair = compare_engines(data, find_engine(data, left), find_engine(data, right))
    trace = RunTrace(side.path, data)
    return pair, _fall(data, trace, left, data, trace, right)


def _across(a: Side, left: str, b: Side, right: str) -> tuple[Comparison, Fall]:
    pair = compare_runs(a.data, left, b.data, right)
    one, two = RunTrace(a.path, a.data), RunTrace(b.path, b.data)
    return pair, _fall(a.data, one, left, b.data, two, right)


def _fall(
    data_a: RunData, trace_a: RunTrace, left: str, data_b: RunData, trace_b: RunTrace, right: str
) -> Fall:
    a, b = trace_a.engine(left), trace_b.engine(right)
    step_a: Maybe = timing_step_ns(data_a, left, a)
    return fall_between(a, step_a, b, timing_step_ns(data_b, right, b))


def _print_text(found: list[tuple[Comparison, Fall]]) -> None:
    from llmprof.exports.text import pairing_table, roles_table
    from llmprof.exports.text.waterfall_table import render
    from llmprof.plaintext import one_line

    for number, (pair, fall) in enumerate(found):
        if number:
            print()
        print(one_line(pair.verdict))
        for warning in pair.warnings:
            print(f"  ! {one_line(warning)}")
        for line in (
            *render(fall),
            *roles_table.render(fall.roles),
            *pairing_table.render(fall.kernels),
        ):
            print(line)


def _print_json(found: list[tuple[Comparison, Fall]]) -> None:
    from llmprof.exports.json.report import comparison_document, to_text

    document: dict[str, Any] = comparison_document(found)
    sys.stdout.write(to_text(document))
