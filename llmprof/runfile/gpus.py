"""GPU facts and samples as the rows that other readers of nsys exports look at.

LLMPROF_GPU_DEVICE and LLMPROF_GPU_SAMPLE hold the exact values; nsys stores integers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from llmprof.records import GpuDevice, GpuSample
from llmprof.runfile.schema import VM

SOURCE_ID = 1
"""Our row of GENERIC_EVENT_SOURCES."""

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


def type_id(device: int) -> int:
    """``GPU_METRICS.typeId``: readers take the device from the low bits."""
    return VM | device


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


def metric_type_rows(device: int) -> dict[str, list[dict[str, Any]]]:
    """Table → rows that give a device's GPU_METRICS rows their names."""
    kind, name = type_id(device), f"NVML GPU {device}"
    names = [metric for _, metric, _ in METRICS]
    return {
        "GENERIC_EVENT_TYPES": [
            {
                "typeId": kind,
                "sourceId": SOURCE_ID,
                "data": json.dumps({"Name": name, "Metrics": names}),
            }
        ],
        "TARGET_INFO_GPU_METRICS": [
            {
                "typeId": kind,
                "sourceId": SOURCE_ID,
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
