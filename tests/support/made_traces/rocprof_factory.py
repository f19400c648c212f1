"""Small JSON documents as rocprofv3 writes them, with what is in them known."""

from __future__ import annotations

from typing import Any


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
