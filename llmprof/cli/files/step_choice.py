"""``--steps`` and ``--step-range`` as one value."""

from __future__ import annotations

import argparse

from llmprof.errors import UsageError
from llmprof.records.steps import (
    StepChoice,
)


def step_choice(arguments: argparse.Namespace) -> StepChoice:
    """What the user wants to be the steps of a file that llmprof did not drive.

    Raises:
        UsageError: both options, and they contradict.
    """
    pattern: str | None = arguments.step_range
    if pattern is not None and arguments.steps in ("detect", "none"):
        raise UsageError(f"--step-range takes ranges for steps, --steps {arguments.steps} does not")
    return StepChoice("ranges" if pattern else arguments.steps, pattern)
