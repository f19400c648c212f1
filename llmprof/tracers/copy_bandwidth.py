"""What this GPU's memory gives right now: a device-to-device copy, measured on the spot.

The peak from the data sheet (memory clock × bus width × 2) is never reached; a roofline is better
stated against this too. Standard library only; a process of its own makes the CUDA context, copies
for some 50 ms and frees everything by ending, so neither session nor engine is touched. Run it
before the engines load: they must not compute meanwhile, and it takes up to half the free memory.
"""

from __future__ import annotations

import ctypes
import math
import statistics
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from llmprof.children.child import ChildFailed, TracerChild
from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.records import Unavailable

BUFFER_BYTES = 1 << 30
"""Ten times the largest L2 cache (B200: 126 MB): what is copied comes from DRAM."""
MINIMUM_BYTES = 256 << 20
REPETITIONS = 5
REPETITION_S = 0.01
TIMEOUT_S = 60.0
CUDA_ERROR_OUT_OF_MEMORY = 2  # cuda.h


@dataclass(frozen=True)
class CopyBandwidth:
    """``gb_s`` counts bytes read + bytes written, in 1e9/s: the median of the repetitions."""

    gb_s: float
    best_gb_s: float
    buffer_bytes: int
    repetitions: int


def measure_copy_bandwidth(device_index: int, uuid: str = "") -> CopyBandwidth | Unavailable:
    """Copy on this device, in a child process; about a second, most of it making the context.

    Args:
        device_index: CUDA ordinal, as a process with this environment sees it.
        uuid: of the only GPU that the child shall see, whatever this environment says.
    """
    only = {"CUDA_VISIBLE_DEVICES": uuid} if uuid else {}
    child = TracerChild("the copy measurement", __name__, only)
    try:
        facts, _ = child.ask({"do": "copy", "device": device_index}, TIMEOUT_S)
    except ChildFailed as why:
        return Unavailable(str(why))
    finally:
        child.close()
    rates = [float(rate) for rate in facts["gb_s"]]
    return CopyBandwidth(
        gb_s=statistics.median(rates),
        best_gb_s=max(rates),
        buffer_bytes=int(facts["buffer_bytes"]),
        repetitions=len(rates),
    )


class CopyError(Exception):
    """One line: why there is no copy."""


class _Driver:
    """libcuda's functions; cuda.h, driver API. Every call raises ``CopyError`` unless it is 0."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise CopyError("no NVIDIA driver: libcuda.so.1 was not found") from None

    def __call__(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code == CUDA_ERROR_OUT_OF_MEMORY:
            raise CopyError("the GPU has no memory left to measure a copy with")
        if code:
            text = c_char_p()
            self._lib.cuGetErrorString(code, byref(text))
            said = (text.value or b"unknown error").decode(errors="replace")
            raise CopyError(f"no copy measured: {name}: {said} ({code})")


def copy_rates(device_index: int) -> dict[str, Any]:
    """In the child: ``gb_s``, one rate a repetition, and ``buffer_bytes``.

    Raises:
        CopyError: no driver, no such device, no memory.
    """
    cuda = _Driver()
    device, context = c_int(), c_void_p()
    cuda("cuInit", 0)
    cuda("cuDeviceGet", byref(device), device_index)
    cuda("cuDevicePrimaryCtxRetain", byref(context), device)
    cuda("cuCtxSetCurrent", context)
    free, total = c_size_t(), c_size_t()
    cuda("cuMemGetInfo_v2", byref(free), byref(total))
    size = min(BUFFER_BYTES, free.value // 4)  # two buffers: at most half of what is free
    if size < MINIMUM_BYTES:
        raise CopyError(
            f"a copy needs {4 * MINIMUM_BYTES >> 20} MiB of free GPU memory to be measured "
            f"({free.value >> 20} MiB are free)"
        )
    source, target = c_uint64(), c_uint64()
    for buffer in (source, target):
        cuda("cuMemAlloc_v2", byref(buffer), c_size_t(size))
        # Pages that were never written need not be in memory.
        cuda("cuMemsetD8_v2", buffer, ctypes.c_ubyte(1), c_size_t(size))
    begin, end = c_void_p(), c_void_p()
    for event in (begin, end):
        cuda("cuEventCreate", byref(event), 0)

    def seconds(copies: int) -> float:
        cuda("cuEventRecord", begin, None)
        for _ in range(copies):
            cuda("cuMemcpyDtoDAsync_v2", target, source, c_size_t(size), None)
        cuda("cuEventRecord", end, None)
        cuda("cuEventSynchronize", end)
        elapsed = c_float()
        cuda("cuEventElapsedTime", byref(elapsed), begin, end)
        return elapsed.value / 1e3

    seconds(4)  # clocks rise
    once = seconds(4) / 4
    if once <= 0:
        raise CopyError("no copy measured: its events lie at one time")
    copies = max(1, math.ceil(REPETITION_S / once))
    rates = [2 * size * copies / seconds(copies) / 1e9 for _ in range(REPETITIONS)]
    return {"gb_s": rates, "buffer_bytes": size}


def serve(read_fd: int, write_fd: int) -> None:
    """The child: one copy, then the end, which frees buffers and context."""
    channel = Channel(read_fd, write_fd)
    try:
        received = channel.receive()
        if received is None or received[0].get("do") != "copy":
            return
        try:
            channel.send({"is": "done", **copy_rates(int(received[0]["device"]))})
        except CopyError as why:
            channel.send({"is": "failed", "message": str(why)})
    except ChannelClosed:
        pass  # the parent is gone
