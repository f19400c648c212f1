"""The JSON of rocprofv3."""

from __future__ import annotations

from pathlib import Path

import kineto_factory as kineto
import pytest
from rocprof_factory import document

from llmprof.analysis.view.opening import open_run
from llmprof.errors import RunFileError
from llmprof.runfile.reader import RunFileReader
from llmprof.traces.opened import readable


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_kernels_and_calls(tmp_path: Path) -> None:
    path = readable(kineto.write(tmp_path / "908_results.json.gz", document()))
    data = open_run(path)
    with RunFileReader(path) as reader:
        found = reader.trace_rows(data.rounds[0])
    assert data.info.environment["source"] == "rocprofv3"
    assert [(d.index, d.name, d.sm_count) for d in data.gpu_devices] == [
        (2, "AMD Instinct MI350X", 256)
    ]
    assert (found.kernels.end_ns - found.kernels.start_ns).tolist() == [2840] * 5
    assert [found.kernels.names[i] for i in found.kernels.name_id] == [
        "void first(int)", "second", "void first(int)", "second", "void first(int)"
    ]  # fmt: skip
    assert found.kernels.grid_x.tolist() == [4] * 5  # blocks, not work items
    assert found.api.names[found.api.name_id[0]] == "hipLaunchKernel"
    assert [e.label for e in data.engines] == ["python3"]


def test_records_without_a_time_are_counted(tmp_path: Path) -> None:
    bad = document(6)
    records = bad["rocprofiler-sdk-tool"][0]["buffer_records"]["kernel_dispatch"]
    records[1]["end_timestamp"] = 5
    records[2]["start_timestamp"] = None
    records.append(7)
    path = readable(kineto.write(tmp_path / "x.json", bad))
    data = open_run(path)
    with RunFileReader(path) as reader:
        assert len(reader.trace_rows(data.rounds[0]).kernels) == 4
    assert any("3 records without a valid time" in w.text for w in data.warnings)


def test_nothing_recorded_says_what_to_do(tmp_path: Path) -> None:
    empty = document(0, hip_api=[])
    with pytest.raises(RunFileError, match="--kernel-trace"):
        readable(kineto.write(tmp_path / "x.json", empty))
