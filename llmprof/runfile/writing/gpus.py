"""GPU facts and samples as the rows that other readers of nsys exports look at.

LLMPROF_GPU_DEVICE and LLMPROF_GPU_SAMPLE hold the exact values; nsys stores integers only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llmprof.records import GpuDevice, GpuSample
from llmprof.runfile.schema import VM

SOURCE_ID, PM_SOURCE_ID = 1, 2
"""Our rows of GENERIC_EVENT_SOURCES: NVML readings and PM samples."""

METRICS = (
    # Field of GpuSample, name with the unit as nsys writes it, factor to that unit.
    ("sm_clock_mhz", "SM Clock [MHz]", 1),
    ("mem_clock_mhz", "Memory Clock [MHz]", 1),
    ("gpu_util_pct", "GPU Utilization [%]", 1),
    ("mem_util_pct", "Memory Utilization [%]", 1),
    ("power_w", "Power [mW]", 1000),
    ("temperature_c", "Temperature [C]", 1),
    ("throttle_mask", "Throttle Reasons [bit mask]", 1),
    ("memory_used_mib", "Memory Used [MiB]", 1),
    ("gpm_dram_bw_pct", "DRAM Bandwidth [Throughput %]", 1),
    ("gpm_sm_util_pct", "SM Utilization [Throughput %]", 1),
    ("gpm_sm_occupancy_pct", "SM Occupancy [Throughput %]", 1),
)

PM_METRICS = (
    # Column of LLMPROF_PM_SAMPLE, name with the unit as nsys writes it.
    ("dram_pct", "DRAM Bandwidth [Throughput %]"),
    ("dram_read_pct", "DRAM Read Bandwidth [Throughput %]"),
    ("sm_active_pct", "SM Active [Throughput %]"),
)


def type_id(device: int, source: int = SOURCE_ID) -> int:
    """``GPU_METRICS.typeId``: readers take the device from the low byte."""
    return VM | (source - SOURCE_ID) << 8 | device


def device_row(device: GpuDevice) -> dict[str, Any]:
    """A row of TARGET_INFO_GPU: bytes, bytes/s and Hz, the UUID without NVML's ``GPU-``."""
    memory, peak, clock = (
        device.memory_total_mib,
        device.peak_bandwidth_gb_s,
        device.max_sm_clock_mhz,
    )
    major, minor = device.compute_capability or (None, None)
    return {
        "vmId": VM,
        "id": device.index,
        "name": device.name,
        "busLocation": device.pci_bus_id,
        "totalMemory": None if memory is None else round(memory * 2**20),
        "memoryBandwidth": None if peak is None else round(peak * 1e9),
        "clockRate": None if clock is None else clock * 1_000_000,
        "smCount": device.sm_count,
        "uuid": device.uuid.removeprefix("GPU-"),
        "cuDevice": device.index,
        "computeMajor": major,
        "computeMinor": minor,
    }


def cuda_device_rows(devices: Iterable[GpuDevice], pids: Iterable[int]) -> list[dict[str, Any]]:
    """Rows of TARGET_INFO_CUDA_DEVICE, without which some readers show nameless GPUs.

    CUDA's index is taken to be NVML's: true unless CUDA_VISIBLE_DEVICES reorders the devices.
    """
    known = list(devices)
    return [
        {
            "gpuId": d.index,
            "cudaId": d.index,
            "pid": pid,
            "uuid": d.uuid.removeprefix("GPU-"),
            "numMultiprocessors": d.sm_count,
        }
        for pid in pids
        for d in known
    ]


def metric_type_rows(device: int, source: int = SOURCE_ID) -> dict[str, list[dict[str, Any]]]:
    """Table → rows that give a device's GPU_METRICS rows of one source their names."""
    kind = type_id(device, source)
    if source == SOURCE_ID:
        name, names = f"NVML GPU {device}", [metric for _, metric, _ in METRICS]
    else:
        name, names = f"PM sampling GPU {device}", [metric for _, metric in PM_METRICS]
    return {
        "GENERIC_EVENT_TYPES": [
            {
                "typeId": kind,
                "sourceId": source,
                "data": json.dumps({"Name": name, "Metrics": names}),
            }
        ],
        "TARGET_INFO_GPU_METRICS": [
            {
                "typeId": kind,
                "sourceId": source,
                "typeName": name,
                "metricId": i,
                "metricName": metric,
            }
            for i, metric in enumerate(names)
        ],
    }


def metric_rows(samples: Iterable[GpuSample], t0_ns: int) -> Iterator[tuple[int, int, int, int]]:
    """``(timestamp, typeId, metricId, value)`` for every value that was read."""
    for sample in samples:
        when, kind = sample.timestamp_ns - t0_ns, type_id(sample.device)
        for i, (field, _, factor) in enumerate(METRICS):
            value = getattr(sample, field)
            if value is not None:
                yield when, kind, i, round(value * factor)


def pm_metric_rows(
    device: int, starts: Iterable[int], columns: Mapping[str, Iterable[float]], t0_ns: int
) -> Iterator[tuple[int, int, int, int]]:
    """The same for PM samples; NaN is a counter that was not read."""
    kind = type_id(device, PM_SOURCE_ID)
    values = [columns[column] for column, _ in PM_METRICS]
    for start, *row in zip(starts, *values, strict=True):
        for i, value in enumerate(row):
            if not math.isnan(value):
                yield int(start) - t0_ns, kind, i, round(value)
