"""The PM sampler's own process: enables, samples, decodes and evaluates. Standard library only.

Requests are ``{"do": "open" | "start" | "stop" | "close", …}``; each but the last is answered by
``{"is": "done", …}`` or ``{"is": "failed", "message": …}``.

Raw records lie in a hardware buffer; every 50 ms they are decoded into a counter image of some
11 kB a sample (H100), and each new sample of it is evaluated at once. The image is used again long
before it is full, so memory stays the same however long a round is: a decode that fills it throws
the rest of the hardware buffer away (45 ms were lost so at each 1024th sample on an H100), while a
reset in between costs the one sample that it cuts.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from array import array
from ctypes import byref, c_int
from typing import Any

from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.tracers.pm import library as pm
from llmprof.tracers.pm.library import Image, Metrics, PmError, PmLibrary

DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
DRAM_READ = "dram__read_throughput.avg.pct_of_peak_sustained_elapsed"
SM_ACTIVE = "sm__cycles_active.avg.pct_of_peak_sustained_elapsed"
METRIC_SETS = ((DRAM, DRAM_READ, SM_ACTIVE), (DRAM, SM_ACTIVE))
"""The first that the chip has, in one pass."""
FURTHER = {
    "dram_write_pct": ("dram__write_throughput.avg.pct_of_peak_sustained_elapsed",),
    "l2_pct": (
        "lts__throughput.avg.pct_of_peak_sustained_elapsed",
        "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
        "lts__lts2xbar_cycles_active.avg.pct_of_peak_sustained_elapsed",
    ),
    "l2_hit_pct": (
        "lts__average_t_sector_hit_rate_realtime.pct",
        "lts__average_t_sector_hit_rate.pct",
        "lts__t_sector_hit_rate.pct",
    ),
    "tensor_pct": (
        "sm__pipe_tensor_cycles_active_realtime.avg.pct_of_peak_sustained_elapsed",
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_elapsed",
    ),
}
"""Column → names to try, best first. Taken where they fit into the same pass as the others."""

HARDWARE_BUFFER_BYTES = 64 << 20
IMAGE_SAMPLES = 4096
RESET_SAMPLES = 1024
POLL_S = 0.05
NICENESS = 5
"""Evaluating takes a good part of a core at 5 kHz: the engine's threads go first."""
CLOCK_READ_NS = 500_000_000
MAX_SAMPLES = 4_000_000
"""Kept of one round (160 MB): a round that hangs must not fill the memory."""


class SamplerError(Exception):
    """One line: why there is no PM sampling here."""


def explain(why: PmError, chip: str) -> str:
    """What a refused call means to the user, and what to do."""
    if why.code in (pm.PRIVILEGES, pm.VIRTUALIZED_PRIVILEGES):
        return (
            "the NVIDIA driver lets only administrators read performance counters: run as root, "
            "add --cap-add SYS_ADMIN to the container, or load the driver with "
            "NVreg_RestrictProfilingToAdminUsers=0"
        )
    holds = why.function in (pm.Enable.function, pm.GetCounterAvailability.function)
    if why.code == pm.HARDWARE_BUSY or (holds and why.code == pm.INVALID_OPERATION):
        return (
            "another profiler holds this GPU's performance counters (ncu, nsys, DCGM's profiling "
            f"metrics): stop it first ({why})"
        )
    if why.code == pm.NOT_INITIALIZED and why.function == pm.HostInitialize.function:
        return f"libnvperf_host.so, which belongs beside libcupti, could not be loaded ({why})"
    for code, what in ((pm.MIG, "a MIG device"), (pm.WSL, "WSL"), (pm.VIRTUALIZED, "a vGPU")):
        if why.code == code:
            return f"no PM sampling on {what}: it needs a whole GPU ({why})"
    if why.code in (pm.NOT_SUPPORTED, pm.INVALID_CHIP_NAME, pm.INVALID_METRIC_NAME):
        return f"no PM sampling of DRAM and SM activity on {chip or 'this GPU'} ({why})"
    return f"PM sampling: {why}"


def clock_reading() -> list[int]:
    """``[CLOCK_REALTIME, CLOCK_MONOTONIC, error]``, ns: the closest of five pairs."""
    best = [0, 0, 1 << 62]
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best[2]:
            best = [wall, (before + after) // 2, after - before]
    return best


def open_device(index: int) -> str:
    """Initialise the driver (no context is made); the device's UUID as NVML writes it.

    Raises:
        SamplerError: no driver, no such device.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise SamplerError("no NVIDIA driver: libcuda.so.1 was not found") from None
    code = driver.cuInit(0)
    if code:
        raise SamplerError(f"the NVIDIA driver has no usable GPU (cuInit returned {code})")
    device, uuid = c_int(), (ctypes.c_ubyte * 16)()
    if driver.cuDeviceGet(byref(device), index) or driver.cuDeviceGetUuid(byref(uuid), device):
        raise SamplerError(f"there is no CUDA device {index}")
    text = bytes(uuid).hex()
    return "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Sampler:
    """One device's counters, held from ``__init__`` to ``close``.

    Args:
        library: path or soname of libcupti.
        further: count what ``FURTHER`` names too, where it can be.

    Raises:
        SamplerError: with the reason for the user.
    """

    def __init__(self, library: str, device: int, interval_ns: int, further: bool = False) -> None:
        self.columns = {DRAM: "dram_pct", DRAM_READ: "dram_read_pct", SM_ACTIVE: "sm_active_pct"}
        """Metric → column."""
        self.refused: dict[str, str] = {}
        """Column of ``FURTHER`` → why it is not counted."""
        self._further = further
        self.uuid = open_device(device)
        self.chip = ""
        self._interval_ns = interval_ns
        self._sampler: int | None = None
        self._host: int | None = None
        try:
            self.lib = PmLibrary(library)
        except OSError as why:
            raise SamplerError(f"{library} cannot be loaded: {why}") from None
        try:
            self._open(device, interval_ns)
        except PmError as why:
            self.close()
            raise SamplerError(explain(why, self.chip)) from None
        self.running = False
        self._image: Image | None = None
        self._reset()

    def _open(self, device: int, interval_ns: int) -> None:
        call = self.lib.call
        call(pm.ProfilerInitialize())
        chip: bytes = call(pm.DeviceGetChipName(device=device)).chip
        self.chip = chip.decode(errors="replace")
        size = call(pm.GetCounterAvailability(device=device)).image_size
        # CUPTI keeps pointers to the availability, the metrics and the configuration.
        self._availability = Image(size)
        call(
            pm.GetCounterAvailability(
                device=device, image_size=size, image=self._availability.address
            )
        )
        for names in METRIC_SETS:
            self.metrics = Metrics(names)
            try:
                passes = self._configure(chip)
            except PmError as why:
                if why.code != pm.INVALID_METRIC_NAME or names is METRIC_SETS[-1]:
                    raise
                continue
            if passes == 1:
                break
        else:
            raise PmError("PM sampling", pm.NOT_SUPPORTED, "the metrics need more than one pass")
        self._add_further(chip)
        self._sampler = call(pm.Enable(device=device)).sampler
        self._set_config(interval_ns)

    def _add_further(self, chip: bytes) -> None:
        """One counter after the other, as long as all fit into one pass."""
        kept = self.metrics.names
        for column, candidates in FURTHER.items() if self._further else ():
            for name in candidates:
                self.metrics = Metrics((*kept, name))
                try:
                    passes = self._configure(chip)
                except PmError as why:
                    self.refused.setdefault(column, f"{self.chip} has no {name} ({why})")
                    continue
                if passes == 1:
                    kept = self.metrics.names
                    self.columns[name] = column
                    self.refused.pop(column, None)
                    break
                self.refused[column] = f"{name} needs another pass beside the others"
        self.metrics = Metrics(kept)
        self._configure(chip)

    def _configure(self, chip: bytes) -> int:
        """A profiler host with ``self.metrics`` and its configuration image; passes it needs."""
        call = self.lib.call
        self._close_host()
        self._host = call(
            pm.HostInitialize(
                profiler_type=pm.PM_SAMPLING, chip=chip, availability=self._availability.address
            )
        ).host
        call(
            pm.HostConfigAddMetrics(
                host=self._host,
                metrics=self.metrics.address,
                metric_count=len(self.metrics.names),
            )
        )
        config = Image(call(pm.HostGetConfigImageSize(host=self._host)).image_size)
        call(pm.HostGetConfigImage(host=self._host, image_size=config.size, image=config.address))
        self._config = config
        found = call(pm.HostGetNumOfPasses(image_size=config.size, image=config.address))
        passes: int = found.passes
        return passes

    def _set_config(self, interval_ns: int) -> None:
        config = pm.SetConfig(
            sampler=self._sampler,
            image_size=self._config.size,
            image=self._config.address,
            hardware_buffer_size=HARDWARE_BUFFER_BYTES,
            interval=interval_ns,
            trigger=pm.TRIGGER_TIME,
            append_mode=pm.KEEP_OLDEST,
        )
        if self.lib.version < pm.VERSION_WITH_APPEND_MODE:
            config.structSize = pm.SetConfig.append_mode.offset
        try:
            self.lib.call(config)
        except PmError as why:
            if why.code not in (pm.NOT_SUPPORTED, pm.INVALID_PARAMETER):
                raise
            # Turing and GA100 count SYS clocks, about one a nanosecond. What interval came of it
            # is read from the samples themselves, here as everywhere.
            config.trigger = pm.TRIGGER_SYSCLK
            self.lib.call(config)
        self.trigger = "time" if config.trigger == pm.TRIGGER_TIME else "sysclk"

    def _reset(self) -> None:
        self._start_ns, self._end_ns = array("q"), array("q")
        self._values = [array("d") for _ in self.metrics.names]
        self._clocks: list[list[int]] = []
        self._decodes: list[tuple[int, int]] = []
        self._dropped, self._overflow = 0, False
        self._failure = ""
        self._done = 0

    def start(self, expected_seconds: float) -> dict[str, Any]:
        """Begin to sample.

        Args:
            expected_seconds: a short round gets a small image; a longer one than told is no error.
        """
        if self.running:
            raise SamplerError("PM sampling runs already")
        self._reset()
        expected = math.ceil(expected_seconds * 1e9 / self._interval_ns) + 64
        self._size_image(min(IMAGE_SAMPLES, expected))
        self._clocks.append(clock_reading())
        before = time.monotonic_ns()
        self.lib.call(pm.Start(sampler=self._sampler))
        self._started = [before, time.monotonic_ns()]
        self.running = True
        return {}

    def _size_image(self, samples: int) -> None:
        size = self.lib.call(
            pm.GetCounterDataSize(
                sampler=self._sampler,
                metrics=self.metrics.address,
                metric_count=len(self.metrics.names),
                max_samples=samples,
            )
        ).image_size
        if self._image is None or self._image.size != size:
            self._image = Image(size)
        image = {"image": self._image.address, "image_size": size}
        self._initialize = pm.ImageInitialize(sampler=self._sampler, **image)
        self._decode = pm.DecodeData(sampler=self._sampler, **image)
        self._info = pm.GetCounterDataInfo(**image)
        self._sample = pm.GetSampleInfo(sampler=self._sampler, **image)
        self._evaluate = pm.HostEvaluateToGpuValues(
            host=self._host,
            metrics=self.metrics.address,
            metric_count=len(self.metrics.names),
            values=ctypes.addressof(self.metrics.values),
            **image,
        )
        self.lib.call(self._initialize)

    def poll(self) -> None:
        """Decode what the hardware has; a failure ends the decoding and is told by ``stop``."""
        if self._failure:
            return
        if time.monotonic_ns() - self._clocks[-1][1] > CLOCK_READ_NS:
            self._clocks.append(clock_reading())
        try:
            while self._decode_once():
                pass
        except PmError as why:
            if why.code == pm.OUT_OF_MEMORY:  # DecodeData's word for an overflow of the buffer
                self._overflow = True
            self._failure = explain(why, self.chip)

    def _decode_once(self) -> bool:
        """Decode and evaluate; true where the image filled up and more may be waiting."""
        call = self.lib.call
        call(self._decode)
        returned_ns = time.monotonic_ns()
        self._overflow |= bool(self._decode.overflow)
        completed = call(self._info).completed
        fresh = completed > self._done
        for index in range(self._done, completed):
            self._take(index)
        self._done = completed
        if fresh and self._end_ns:
            self._decodes.append((returned_ns, self._end_ns[-1]))
        full: bool = self._decode.stop_reason == pm.COUNTER_DATA_FULL
        if full or completed >= RESET_SAMPLES:
            call(self._initialize)
            self._done = 0
        return full and fresh

    def _take(self, index: int) -> None:
        self._sample.index = self._evaluate.index = index
        self.lib.call(self._sample)
        start, end = self._sample.start, self._sample.end
        # The first sample after Start can come without a start of its own.
        if not 0 < start < end or len(self._start_ns) >= MAX_SAMPLES:
            self._dropped += 1
            return
        self.lib.call(self._evaluate)
        self._start_ns.append(start)
        self._end_ns.append(end)
        for column, value in zip(self._values, self.metrics.values, strict=True):
            column.append(value)

    def stop(self) -> tuple[dict[str, Any], bytes]:
        """End sampling; facts, and the columns one after the other: start, end, metrics."""
        if not self.running:
            raise SamplerError("PM sampling does not run")
        self.running = False
        before = time.monotonic_ns()
        self.lib.call(pm.Stop(sampler=self._sampler))
        stopped = [before, time.monotonic_ns()]
        self.poll()
        self._clocks.append(clock_reading())
        if self._failure and not self._overflow:
            raise SamplerError(self._failure)
        facts = {
            "samples": len(self._start_ns),
            "columns": [self.columns[name] for name in self.metrics.names],
            "dropped": self._dropped,
            "overflow": self._overflow,
            "started": self._started,
            "stopped": stopped,
            "clocks": self._clocks,
            "decodes": self._decodes,
        }
        blob = b"".join(
            (self._start_ns.tobytes(), self._end_ns.tobytes(), *(c.tobytes() for c in self._values))
        )
        self._reset()
        return facts, blob

    def close(self) -> None:
        """Give the counters back. What fails here has no consequence: the process ends next."""
        try:
            if self._sampler is not None:
                self.lib.call(pm.Disable(sampler=self._sampler))
                self._sampler = None
            self._close_host()
            self.lib.call(pm.ProfilerDeInitialize())
        except PmError:
            pass  # the driver frees what a dead process held

    def _close_host(self) -> None:
        if self._host is not None:
            self.lib.call(pm.HostDeinitialize(host=self._host))
            self._host = None


def answer(sampler: Sampler | None, ask: dict[str, Any]) -> tuple[Sampler, dict[str, Any], bytes]:
    """Do one request; the sampler, the facts and bytes to send."""
    if ask["do"] == "open":
        further = bool(ask.get("further"))
        sampler = Sampler(ask["library"], ask["device"], ask["interval_ns"], further)
        facts = {
            "chip": sampler.chip,
            "uuid": sampler.uuid,
            "cupti_version": sampler.lib.version,
            "trigger": sampler.trigger,
            "refused": sampler.refused,
        }
        return sampler, facts, b""
    if sampler is None:
        raise SamplerError("the PM sampler is not open")
    if ask["do"] == "start":
        return sampler, sampler.start(ask["expected_seconds"]), b""
    return sampler, *sampler.stop()


def serve(read_fd: int, write_fd: int) -> None:
    """Answer the parent until it says ``close`` or is gone; decode in between."""
    os.nice(NICENESS)
    channel = Channel(read_fd, write_fd)
    sampler: Sampler | None = None
    try:
        while True:
            running = sampler is not None and sampler.running
            received = channel.receive(POLL_S if running else None)
            if received is None:
                if sampler is not None:
                    sampler.poll()
                continue
            ask = received[0]
            if ask["do"] == "close":
                break
            try:
                sampler, facts, blob = answer(sampler, ask)
            except SamplerError as why:
                channel.send({"is": "failed", "message": str(why)})
            except PmError as why:
                chip = sampler.chip if sampler is not None else ""
                channel.send({"is": "failed", "message": explain(why, chip)})
            else:
                channel.send({"is": "done", **facts}, blob)
    except ChannelClosed:
        pass  # the parent is gone
    if sampler is not None:
        sampler.close()
