"""Recordings of a real GPU, decoded: against torch.profiler and against what is known."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from cupti_truth import check_folder

from llmprof.tracers.cupti import decode
from llmprof.tracers.cupti.decode import Trace

FIXTURE = Path(__file__).parents[1] / "fixtures" / "cupti"


def test_a_real_recording_decodes_to_what_is_known() -> None:
    if not (FIXTURE / "truth.json").exists():
        pytest.skip("no tests/fixtures/cupti; tests/gpu/cupti/record_cupti_fixture.py makes it")
    failed = [what for good, what in check_folder(FIXTURE) if not good]
    assert failed == []


@pytest.mark.parametrize("name", ["torch-full", "torch-kernels", "driver-full"])
def test_records_of_a_real_recording_are_found_by_their_times(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow way is for buffers whose times are not what they should be."""
    spool = tmp_path / "spool"
    spool.write_bytes(gzip.decompress((FIXTURE / f"{name}.spool.gz").read_bytes()))
    trace = Trace(spool)
    found = [len(records.kernels) for records in trace.records()]
    monkeypatch.setattr(decode, "_chain", lambda words, steps: (np.zeros(0, np.intp), 0))
    assert [len(records.kernels) for records in trace.records()] == found and sum(found)
    assert trace.lost == []
    trace.close()
