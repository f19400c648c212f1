"""Recordings of a real GPU, decoded: against torch.profiler and against what is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from cupti_truth import check_folder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "cupti"


def test_a_real_recording_decodes_to_what_is_known() -> None:
    if not (FIXTURE / "truth.json").exists():
        pytest.skip("no tests/fixtures/cupti; tests/gpu/cupti/record_cupti_fixture.py makes it")
    failed = [what for good, what in check_folder(FIXTURE) if not good]
    assert failed == []
