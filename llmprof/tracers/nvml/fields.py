"""What is asked of NVML, and how. ``pynvml`` (package nvidia-ml-py) is imported on the first use.

Function names, units and error codes are those of nvml.h; pynvml is a thin ctypes layer over
``libnvidia-ml.so.1``. A refusal is ``pynvml.NVMLError`` with the code in ``value``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmprof.plaintext import one_line
from llmprof.records import GpuDevice, Missing, Unavailable
from llmprof.tracers.nvml.binding import ERROR_FUNCTION_NOT_FOUND, load

MIB = 1024 * 1024

# nvmlReturn_t of nvml.h
ERROR_NO_PERMISSION = 4
ERROR_DRIVER_NOT_LOADED = 9
ERROR_LIBRARY_NOT_FOUND = 12
ERROR_LIB_RM_VERSION_MISMATCH = 18
DEVICE_GONE = frozenset({1, 9, 15, 16, 28})
"""Uninitialized, driver not loaded, GPU is lost, reset required, GPU not found: the handle is of
no more use."""
TRANSIENT = frozenset({10, 19, 20, 21, 23, 27, 999})
"""Timeout, in use, memory, no data, insufficient resources, not ready, unknown: ask again."""

_OPEN_REASONS = {
    ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver library (libnvidia-ml.so.1) on this machine",
    ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver library is here, but the kernel driver is not"
    " loaded (in a container: start it with --gpus all)",
    ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver: /dev/nvidia* must be readable"
    " and writable for this user",
    ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA library and the loaded kernel driver differ in"
    " version: reboot, or reload the driver",
}


@dataclass(frozen=True)
class Field:
    """One cheap NVML call: the ``GpuSample`` fields it fills, in the order ``read`` returns."""

    names: tuple[str, ...]
    read: Callable[[Any, Any], tuple[float, ...]]


def _temperature(nvml: Any, handle: Any) -> tuple[float, ...]:
    """nvmlDeviceGetTemperatureV takes over from nvmlDeviceGetTemperature in CUDA 14."""
    sensor = nvml.NVML_TEMPERATURE_GPU
    try:
        return (nvml.nvmlDeviceGetTemperatureV(handle, sensor),)
    except nvml.NVMLError as why:
        if why.value != ERROR_FUNCTION_NOT_FOUND:
            raise
    return (nvml.nvmlDeviceGetTemperature(handle, sensor),)


def _event_reasons(nvml: Any, handle: Any) -> tuple[float, ...]:
    """Drivers before 535 know the same mask as "throttle reasons"."""
    try:
        return (nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),)
    except nvml.NVMLError as why:
        if why.value != ERROR_FUNCTION_NOT_FOUND:
            raise
    return (nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),)


def _utilisation(nvml: Any, handle: Any) -> tuple[float, ...]:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return (float(rates.gpu), float(rates.memory))


def _sm_count(nvml: Any, handle: Any) -> int:
    """Many drivers answer with attributes for MIG devices alone; what all of them know is the
    number of cores, and the CUDA C programming guide has how many of them make an SM."""
    try:
        return int(nvml.nvmlDeviceGetAttributes_v2(handle).multiprocessorCount)
    except nvml.NVMLError:
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
        cores = _CORES_PER_SM.get(capability)
        if cores is None:
            raise
        total = int(nvml.nvmlDeviceGetNumGpuCores(handle))
        if not total or total % cores:
            raise
        return total // cores


def _nvlink_gb_s(nvml: Any, handle: Any) -> float | None:
    """The rates of all active links added up: 18 of 26.562 GB/s on an H100 SXM. ``None`` where no
    link is active or NVML knows of none.

    Drivers say the rate of a link as NVLINK_GET_SPEED, older ones one of all as SPEED_MBPS_COMMON
    (nvml.h); a driver that says neither knows the links' version, and NVIDIA's data sheets have
    its rate.
    """
    active = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, link):
                active.append(link)
        except nvml.NVMLError:
            break  # NVML refuses the number after the last link
    if not active:
        return None
    wanted = [(nvml.NVML_FI_DEV_NVLINK_GET_SPEED, link) for link in active]
    speeds = _field_values(nvml, handle, wanted)
    if not all(speeds):
        speeds = _field_values(nvml, handle, [(nvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, 0)])
        speeds = speeds * len(active)
    if all(speeds):
        return sum(speeds) / 1000
    versions = [nvml.nvmlDeviceGetNvLinkVersion(handle, link) for link in active]
    return (
        sum(_LINK_GB_S[version] for version in versions)
        if set(versions) <= set(_LINK_GB_S)
        else None
    )


def _field_values(nvml: Any, handle: Any, fields: list[tuple[int, int]]) -> list[int]:
    """Unsigned values; 0 where NVML refuses one."""
    try:
        found = nvml.nvmlDeviceGetFieldValues(handle, fields)
    except nvml.NVMLError:
        return [0] * len(fields)
    return [0 if one.nvmlReturn else int(one.value.uiVal) for one in found]


_LINK_GB_S = {1: 20.0, 2: 25.0, 3: 25.0, 4: 25.0, 5: 25.0, 6: 25.0, 7: 50.0}
"""GB/s of one link in one direction by NVML_NVLINK_VERSION: 1.0, 2.0, 2.2, 3.0, 3.1, 4.0, 5.0."""
_CORES_PER_SM = {
    **dict.fromkeys([(7, 0), (7, 2), (7, 5), (8, 0)], 64),
    **dict.fromkeys([(8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)], 128),
}
"""FP32 cores of a multiprocessor by compute capability."""


# Each 1–50 µs on an H100. Not here: MaxClockInfo (1–2 ms), TotalEnergyConsumption (4 ms) and
# PcieThroughput, which blocks for 20 ms.
FIELDS = (
    Field(("sm_clock_mhz",), lambda n, h: (n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM),)),
    Field(("mem_clock_mhz",), lambda n, h: (n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM),)),
    Field(("gpu_util_pct", "mem_util_pct"), _utilisation),
    Field(("power_w",), lambda n, h: (n.nvmlDeviceGetPowerUsage(h) / 1000,)),
    Field(("temperature_c",), _temperature),
    Field(("throttle_mask",), _event_reasons),
    Field(("memory_used_mib",), lambda n, h: (n.nvmlDeviceGetMemoryInfo(h).used / MIB,)),
)

# GpuDevice field → call. Read once.
_FACTS: dict[str, Callable[[Any, Any], Any]] = {
    "name": lambda n, h: one_line(_text(n.nvmlDeviceGetName(h)), 100),
    "uuid": lambda n, h: one_line(_text(n.nvmlDeviceGetUUID(h)), 100),
    "pci_bus_id": lambda n, h: one_line(_text(n.nvmlDeviceGetPciInfo(h).busId)),
    "memory_total_mib": lambda n, h: n.nvmlDeviceGetMemoryInfo(h).total / MIB,
    "bus_width_bits": lambda n, h: n.nvmlDeviceGetMemoryBusWidth(h),
    "max_sm_clock_mhz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM),
    "max_mem_clock_mhz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_MEM),
    "power_limit_w": lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h) / 1000,
    "sm_count": _sm_count,
    "compute_capability": lambda n, h: tuple(n.nvmlDeviceGetCudaComputeCapability(h)),
    "nvlink_gb_s": _nvlink_gb_s,
}


def _text(value: str | bytes) -> str:
    """nvidia-ml-py before 11.515 gives bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def open_nvml() -> Any:
    """Load and initialise NVML.

    Returns:
        The module ``pynvml``, to be closed with its ``nvmlShutdown()``, or ``Unavailable``.
    """
    try:
        nvml = load()
    except ImportError:
        return Unavailable("package nvidia-ml-py is not installed (pip install nvidia-ml-py)")
    except AttributeError:
        return Unavailable("the installed module pynvml is not nvidia-ml-py's: pip uninstall it")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as why:
        return Unavailable(_OPEN_REASONS.get(why.value, f"NVML does not start: {why}"))
    return nvml


def visible_handles(nvml: Any) -> tuple[list[Any], list[Missing]]:
    """Handles of the GPUs that CUDA will number 0, 1, … in a process started from here.

    ``CUDA_VISIBLE_DEVICES`` holds indices, UUIDs or unique beginnings of UUIDs; what follows the
    first invalid entry is invisible (CUDA programming guide, "CUDA Environment Variables").

    Raises:
        pynvml.NVMLError: the GPUs cannot be counted.
    """
    handles: dict[int, Any] = {}
    missing = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handles[index] = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as why:
            missing.append(Missing("run", f"nvml.device{index}", str(why)))
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(handles.values()), missing
    chosen = []
    for entry in wanted.split(","):
        handle = _handle_of(nvml, entry.strip(), handles)
        if handle is None:
            break
        chosen.append(handle)
    return chosen, missing


def _handle_of(nvml: Any, entry: str, handles: dict[int, Any]) -> Any | None:
    if entry.isdecimal():
        return handles.get(int(entry))
    try:
        if entry.startswith("MIG-"):
            return nvml.nvmlDeviceGetHandleByUUID(entry)
        if entry.startswith("GPU-"):
            found = [
                h for h in handles.values() if _text(nvml.nvmlDeviceGetUUID(h)).startswith(entry)
            ]
            return found[0] if len(found) == 1 else None
    except nvml.NVMLError:
        pass  # an entry that NVML does not know is one that CUDA does not know
    return None


def describe_device(nvml: Any, handle: Any, index: int) -> tuple[GpuDevice, list[Missing]]:
    """The fixed facts of one GPU (a few ms), and a row for each that NVML refused."""
    facts: dict[str, Any] = {"name": "unnamed GPU", "uuid": ""}
    missing = []
    for name, read in _FACTS.items():
        try:
            facts[name] = read(nvml, handle)
        except nvml.NVMLError as why:
            missing.append(Missing(f"gpu{index}", f"device.{name}", str(why)))
    return GpuDevice(index=index, **facts), missing


def driver_versions() -> dict[str, str] | Unavailable:
    """``{"driver": "580.159.04", "cuda": "13.0", "nvml": "13.580.159.04"}``.

    ``cuda`` is the newest CUDA that the driver supports.
    """
    nvml = open_nvml()
    if isinstance(nvml, Unavailable):
        return nvml
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()  # 13000: 1000 × major + 10 × minor
        return {
            "driver": one_line(_text(nvml.nvmlSystemGetDriverVersion()), 40),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "nvml": one_line(_text(nvml.nvmlSystemGetNVMLVersion()), 40),
        }
    except nvml.NVMLError as why:
        return Unavailable(f"NVML: {why}")
    finally:
        nvml.nvmlShutdown()
