"""GPU performance monitoring through NVML: measured DRAM bandwidth, Hopper and newer.

A value is the mean between two samples. The counters refresh about every 100 ms: a pair closer than
that gives NaN for the DRAM and 0 for the rest (measured on an H100), which is no measurement.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from llmprof.records import Unavailable
from llmprof.tracers.nvml.fields import ERROR_NO_PERMISSION

MIN_PAIR_NS = 110_000_000

# GpuSample field → nvmlGpmMetricId_t of nvml.h, each 0–100 %
METRICS = {"gpm_sm_util_pct": 2, "gpm_sm_occupancy_pct": 3, "gpm_dram_bw_pct": 10}

_PARAMS = Path("/proc/driver/nvidia/params")


class GpmReader:
    """Reads one device. Make it with ``open_gpm``."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Raises ``pynvml.NVMLError`` where samples cannot be had."""
        self._nvml = nvml
        self._handle = handle
        self._samples: list[Any] = []
        try:
            self._samples = [nvml.nvmlGpmSampleAlloc() for _ in range(2)]
            nvml.nvmlGpmSampleGet(handle, self._samples[0])
        except nvml.NVMLError:
            self.close()
            raise
        self._first_ns = time.monotonic_ns()
        self._request = nvml.c_nvmlGpmMetricsGet_t()
        self._request.version = nvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = len(METRICS)
        for i, metric in enumerate(METRICS.values()):
            self._request.metrics[i].metricId = metric

    def read(self) -> dict[str, float | Unavailable]:
        """Means since the last read that gave values, 0.1–0.3 ms; empty when it is too early.

        Raises:
            pynvml.NVMLError: the device refused.
        """
        now = time.monotonic_ns()
        if now - self._first_ns < MIN_PAIR_NS:
            return {}
        first, second = self._samples
        self._nvml.nvmlGpmSampleGet(self._handle, second)
        self._request.sample1, self._request.sample2 = first, second
        self._nvml.nvmlGpmMetricsGet(self._request)
        values: dict[str, float | Unavailable] = {}
        for i, name in enumerate(METRICS):
            metric = self._request.metrics[i]
            if metric.nvmlReturn:
                values[name] = Unavailable(str(self._nvml.NVMLError(metric.nvmlReturn)))
            elif math.isnan(metric.value):
                # Not refreshed yet, so the zeros beside the NaN are none either: the first sample
                # stays, and the next pair is longer.
                return {}
            else:
                values[name] = float(metric.value)
        self._samples.reverse()
        self._first_ns = now
        return values

    def close(self) -> None:
        """Free the samples; harmless when the GPU is gone."""
        samples, self._samples = self._samples, []
        for sample in samples:
            try:
                self._nvml.nvmlGpmSampleFree(sample)
            except self._nvml.NVMLError:
                pass  # the driver is gone, and its memory with it


def open_gpm(nvml: Any, handle: Any) -> GpmReader | Unavailable:
    """A reader with its first sample taken, or why this GPU has none."""
    try:
        supported = bool(nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
        if supported:
            return GpmReader(nvml, handle)
    except nvml.NVMLError as why:
        return Unavailable(gpm_refusal(nvml, handle, why))
    return Unavailable("this GPU has no GPM counters (Hopper and newer do): bandwidth is modelled")


def gpm_refusal(nvml: Any, handle: Any, why: Any) -> str:
    """NVML's reason, with what would help where that is known."""
    if why.value != ERROR_NO_PERMISSION:
        return f"GPM: {why}"
    if _mig_is_on(nvml, handle):
        return f"GPM: {why}: MIG mode is on, and GPM counts the whole GPU"
    if _admin_only():
        return f"GPM: {why}: the driver keeps counters for root (RmProfilingAdminOnly is 1)"
    return f"GPM: {why}"


def _mig_is_on(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False  # GPUs without MIG do not support the question


def _admin_only() -> bool:
    try:
        return "RmProfilingAdminOnly: 1" in _PARAMS.read_text()
    except OSError:
        return False
