"""The JSON of rocprofv3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kineto_factory as kineto
import pytest

from llmprof.analysis.view.opening import open_run
from llmprof.errors import RunFileError
from llmprof.runfile.reader import RunFileReader
from llmprof.traces.opened import readable


def document(kernels: int = 5, **records: Any) -> dict[str, Any]:
    """As rocprofiler-sdk-tool writes it, as far as it is read."""
    dispatches = [
        {
            "thread_id": 908, "correlation_id": {"internal": i + 1, "external": 0},
            "start_timestamp": 63_857_982_592_000 + 10_000 * i,
            "end_timestamp": 63_857_982_592_000 + 10_000 * i + 2840,
            "dispatch_info": {
                "agent_id": {"handle": 37946}, "queue_id": {"handle": 16}, "kernel_id": 8 + i % 2,
                "workgroup_size": {"x": 256, "y": 1, "z": 1},
                "grid_size": {"x": 1000, "y": 1, "z": 1}, "group_segment_size": 64,
            },
            "stream_id": {"handle": 3},
        }
        for i in range(kernels)
    ]  # fmt: skip
    call = {
        "kind": 1, "operation": 1, "thread_id": 910, "correlation_id": {"internal": 1},
        "start_timestamp": 63_857_982_590_000, "end_timestamp": 63_857_982_593_000,
    }  # fmt: skip
    tool = {
        "metadata": {"pid": 908, "command": ["/usr/bin/python3", "x.py"]},
        "agents": [
            {"id": {"handle": 37944}, "type": 1, "name": "EPYC", "node_id": 0},
            {"id": {"handle": 37946}, "type": 2, "name": "gfx950", "logical_node_id": 2,
             "product_name": "AMD Instinct MI350X", "cu_count": 256},
        ],
        "strings": {"buffer_records": [
            {"kind": "NONE", "operations": []},
            {"kind": "HIP_RUNTIME_API", "operations": ["none", "hipLaunchKernel"]},
        ]},
        "kernel_symbols": [
            {"kernel_id": 8, "formatted_kernel_name": "void first(int)", "kernel_name": "_Z"},
            {"kernel_id": 9, "formatted_kernel_name": "second", "kernel_name": "second"},
        ],
        "buffer_records": {"kernel_dispatch": dispatches, "hip_api": [call], **records},
    }  # fmt: skip
    return {"rocprofiler-sdk-tool": [tool]}


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
