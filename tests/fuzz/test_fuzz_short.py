"""The readers over inputs that are almost right: the kept corpus, and fresh changes to it.

The long run is ``run_fuzz.py``; what it found once lies in ``tests/fixtures/fuzz``.
"""

from __future__ import annotations

import random
from pathlib import Path

import fuzz_inputs
import pytest
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FRESH = {"nvtx": 400, "spool": 300, "recorded": 150, "nsys": 60, "runfile": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_the_kept_corpus_is_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    inputs = fuzz_inputs.corpus(name)
    said = [TARGETS[name].run(data, tmp_path) for data in inputs]
    # The inputs to begin with are whole: a target that refuses them would test nothing.
    if name in ("kineto", "rocprof", "nsys", "runfile"):
        assert all("decode" in text for text in said[: len(fuzz_inputs.seeds(name))])


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    inputs = fuzz_inputs.corpus(name)

    @settings(
        max_examples=FRESH.get(name, 40),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.integers(0, len(inputs) - 1), st.integers(0, 1 << 32))
    def check(number: int, seed: int) -> None:
        data = fuzz_inputs.changed(inputs[number], random.Random(seed))
        TARGETS[name].run(data, tmp_path)

    check()
