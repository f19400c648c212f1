"""What is known about the steps of a program that llmprof did not drive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StepsFrom = Literal["driven", "marked", "detected", "none"]
"""How the steps of a round are known: our own loop stamped them; an engine's ranges say so; they
were found in the device's own work; they are not known."""
StepPhase = Literal["decode", "prefill", "mixed", "verify", "other", "pause"]
"""What a step is for. ``mixed``: prompts and decoding in one; ``verify``: of drafted tokens.
``other``: what lies between two steps; ``pause``: nothing does, the program waited."""
BETWEEN: tuple[StepPhase, ...] = ("other", "pause")
"""No steps at all."""


@dataclass(frozen=True)
class Composition:
    """What a step computes, as its engine wrote it. ``None``: the name does not say."""

    phase: StepPhase
    engine: str
    context_requests: int | None = None
    """Requests whose prompt is computed."""
    generation_requests: int | None = None
    """Requests that get their next token."""
    context_tokens: int | None = None
    generation_tokens: int | None = None
    """Query tokens; more than the requests where drafts are verified."""
    kv_tokens: int | None = None
    """KV positions, summed over all requests."""
    attention_pairs: int | None = None
    """Sum over the requests of query tokens × KV positions."""

    @property
    def words(self) -> str:
        """``batch 33, 1 prompt, KV 55,086``; empty where the name does not say."""
        requests = [n for n in (self.context_requests, self.generation_requests) if n is not None]
        parts = [f"batch {sum(requests):,}"] if requests else []
        if self.context_requests:
            parts.append(f"{self.context_requests:,} prompt{'s' * (self.context_requests > 1)}")
        if self.kv_tokens:
            parts.append(f"KV {self.kv_tokens:,}")
        return ", ".join(parts)

    @property
    def new_tokens(self) -> int | None:
        """Tokens that the step decodes: one a request; of drafts, how many hold is not known."""
        return None if self.phase == "verify" else self.generation_requests


@dataclass(frozen=True)
class StepLabel:
    """One step of a round that llmprof did not drive. ``text`` is untrusted."""

    phase: StepPhase
    text: str = ""
    composition: Composition | None = None


@dataclass(frozen=True)
class StepChoice:
    """What the user wants to be the steps of a file that llmprof did not drive."""

    how: Literal["auto", "ranges", "detect", "none"] = "auto"
    """``auto``: ranges where some explain the work, else detected ones."""
    pattern: str | None = None
    """Glob over the texts of ranges (``--step-range``)."""


AUTO_STEPS = StepChoice()


@dataclass(frozen=True)
class StepsFound:
    """How the steps of one engine are known, and on what that rests. Texts are printable."""

    source: StepsFrom
    words: str
    """One line: which ranges, or which repeat; where there are no steps, why."""
    evidence: tuple[tuple[str, str | int | float], ...] = ()
    """Name → value, in the order to be shown."""
    left_out: tuple[str, ...] = ()
    """What was not taken for a step, how much of it, and why."""
    candidates: tuple[str, ...] = ()
    """What else could be the steps."""


WINDOW_CLOSED = "window_closed_ns"
"""In a recorded run's environment: [begin, end] of times in which nothing was recorded, ns since
the start of the run."""
DRIVEN = StepsFound("driven", "llmprof drove the engine and stamped every step")


def counted(labels: tuple[StepLabel, ...], steps: int) -> list[bool]:
    """Of every step, is it one that means and medians are over? The decode steps, or where there
    is none those of the most frequent phase; all where there are no labels."""
    if not labels:
        return [True] * steps
    main = main_phase(labels)
    return [label.phase == main for label in labels]


def main_phase(labels: tuple[StepLabel, ...]) -> StepPhase:
    """Of the steps that count."""
    phases = [label.phase for label in labels if label.phase not in BETWEEN]
    if not phases or "decode" in phases:
        return "decode"
    return max(sorted(set(phases)), key=phases.count)
