"""GPU clocks, power, temperature, throttling and memory, sampled from llmprof's own process."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from llmprof.records import GpuDevice, GpuSample, Missing, Unavailable
from llmprof.tracers.nvml.fields import (
    DEVICE_GONE,
    FIELDS,
    TRANSIENT,
    describe_device,
    open_nvml,
    visible_handles,
)
from llmprof.tracers.nvml.gpm import GpmReader, gpm_refusal, open_gpm

GIVE_UP_AFTER = 10
"""A field whose reads fail this often in a row, even by errors that pass, is dropped."""

ENERGY_INTERVAL_S = 0.2
"""The energy counter takes 4 ms to read, in this process."""


class NvmlTracer:
    """Samples GPUs in a thread of the parent (``tracers.base.Tracer``).

    A device's index is the number that CUDA gives it in a worker: its place in
    ``CUDA_VISIBLE_DEVICES``, or NVML's own order where that is not set.

    Args:
        interval_s: time between samples; GPM values come with about every second one.
        on_samples: called from the tracer's thread with one sample for each device still there.
        on_warning: ``(scope, text)``, from the tracer's thread (or that of ``devices``).
    """

    name = "nvml"
    cost = (
        "nothing in the traced process; in llmprof's own about 0.4 ms a GPU and sample (on an H100:"
        " clocks, power, temperature 1–3 µs each, utilisation and memory 7–50 µs, GPM 0.1–0.3 ms),"
        " and 4 ms for energy at each border of a phase"
    )

    def __init__(
        self,
        interval_s: float = 0.1,
        on_samples: Callable[[list[GpuSample]], None] = lambda samples: None,
        on_warning: Callable[[str, str], None] = lambda scope, text: None,
    ) -> None:
        self._interval_s = interval_s
        self._on_samples = on_samples
        self._on_warning = on_warning
        self._nvml: Any = None
        self._handles: dict[int, Any] = {}
        self._devices: list[GpuDevice] = []
        self._used: set[int] | None = None
        self._lock = threading.Lock()
        self._missing: dict[tuple[str, str], str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._energy: dict[int, deque[tuple[int, int]]] = {}

    def probe(self) -> Unavailable | None:
        """Why there is nothing to sample here; ``None`` when there is."""
        nvml = open_nvml()
        if isinstance(nvml, Unavailable):
            return nvml
        try:
            if not nvml.nvmlDeviceGetCount():
                return Unavailable("the NVIDIA driver is here, but it sees no GPU")
            handles, missing = visible_handles(nvml)
        except nvml.NVMLError as why:
            return Unavailable(f"NVML cannot list the GPUs: {why}")
        finally:
            nvml.nvmlShutdown()
        if handles:
            return None
        if missing:
            return Unavailable(f"the NVIDIA driver gives access to no GPU: {missing[0].reason}")
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return Unavailable(f"CUDA_VISIBLE_DEVICES={shown} hides every GPU")

    def devices(self) -> list[GpuDevice]:
        """The visible GPUs (read once, a few ms each); empty where ``probe`` has a reason."""
        if self._nvml is None:
            self._open()
        return list(self._devices)

    def use(self, devices: Iterable[int]) -> None:
        """Sample these devices only (before ``start``); all of them without this call."""
        self._used = set(devices)

    def start(self) -> None:
        """Begin to sample, the first sample at once."""
        self.devices()
        if self._nvml is None or self._thread is not None:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, name="llmprof-nvml", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling and close NVML. A second call does nothing."""
        self._stop.set()
        if self._thread is not None:
            # A driver that hangs must not hang the run: the thread is a daemon.
            self._thread.join(timeout=5)
            if self._thread.is_alive():
                self._miss("run", "nvml", "the NVIDIA driver did not answer for 5 s")
                return
            self._thread = None
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                pass  # a driver that went away has nothing left to close

    def energy_mj(self, device: int) -> int | None:
        """Energy of the device since the driver was loaded, mJ; ``None`` is in ``missing()``.

        Takes 4 ms: for borders of phases. On from Volta (nvmlDeviceGetTotalEnergyConsumption).
        """
        nvml, handle = self._nvml, self._handles.get(device)
        if nvml is None or handle is None:
            return None
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError as why:
            self._miss(f"gpu{device}", "nvml.energy_mj", str(why))
            return None

    def energy_between(self, device: int, start_ns: int, end_ns: int) -> tuple[int, int] | None:
        """The energy counter at two moments of the recent past, mJ, between its readings.

        Readings come every ``ENERGY_INTERVAL_S``, and one is made now, so both moments lie between
        two readings; the counter itself is refreshed by the driver about as often. ``None`` where
        the counter or the readings around a moment are missing.
        """
        now = self._read_energy(device)
        with self._lock:
            readings = list(self._energy.get(device, ()))
        if now is None or len(readings) < 2:
            return None
        values = [_between(readings, t) for t in (start_ns, end_ns)]
        return None if None in values else (values[0] or 0, values[1] or 0)

    def missing(self) -> list[Missing]:
        """What NVML refused so far, each once; devices that were lost come first."""
        with self._lock:
            rows = [Missing(scope, name, why) for (scope, name), why in self._missing.items()]
        return sorted(rows, key=lambda row: row.name != "nvml")

    # -- internals ---------------------------------------------------------------------------

    def _read_energy(self, device: int) -> int | None:
        before = time.monotonic_ns()
        value = self.energy_mj(device)
        if value is not None:
            stamp = (before + time.monotonic_ns()) // 2
            with self._lock:
                self._energy.setdefault(device, deque(maxlen=4096)).append((stamp, value))
        return value

    def _miss(self, scope: str, name: str, reason: str) -> None:
        with self._lock:
            self._missing.setdefault((scope, name), reason)

    def _open(self) -> None:
        nvml = open_nvml()
        if isinstance(nvml, Unavailable):
            return
        try:
            handles, missing = visible_handles(nvml)
        except nvml.NVMLError as why:
            self._miss("run", "nvml", f"NVML cannot list the GPUs: {why}")
            nvml.nvmlShutdown()
            return
        self._nvml, self._handles, self._devices = nvml, dict(enumerate(handles)), []
        for index, handle in self._handles.items():
            device, refused = describe_device(nvml, handle, index)
            self._devices.append(device)
            missing += refused
        for row in missing:
            self._miss(row.scope, row.name, row.reason)
        order = os.environ.get("CUDA_DEVICE_ORDER")
        if len({device.name for device in self._devices}) > 1 and order != "PCI_BUS_ID":
            self._on_warning(
                "run",
                "GPUs of different kinds: CUDA may number them differently from NVML;"
                " set CUDA_DEVICE_ORDER=PCI_BUS_ID",
            )

    def _sample(self) -> None:
        """The thread: a fault in it ends sampling, and is said."""
        try:
            self._sample_on()
        except Exception as why:  # noqa: BLE001 - a thread that dies alone is seen by nobody
            text = f"sampling has ended: {type(why).__name__}: {why}"
            self._miss("run", "nvml", text)
            self._on_warning("run", f"NVML: {text}")

    def _sample_on(self) -> None:
        """One list of samples each interval, until stopped or no device is left."""
        loops = [
            _DeviceLoop(self._nvml, handle, index, self._miss)
            for index, handle in self._handles.items()
            if self._used is None or index in self._used
        ]
        due = energy_due = time.monotonic()
        while loops and not self._stop.is_set():
            samples = []
            for loop in list(loops):
                try:
                    samples.append(loop.read())
                except _DeviceLost as why:
                    loops.remove(loop)
                    loop.close()
                    scope, text = f"gpu{loop.index}", f"NVML lost the GPU: {why}"
                    self._miss(scope, "nvml", text)
                    self._on_warning(scope, text)
            if samples:
                self._on_samples(samples)
            if time.monotonic() >= energy_due:
                energy_due = time.monotonic() + ENERGY_INTERVAL_S
                for loop in loops:
                    self._read_energy(loop.index)
            due = max(due + self._interval_s, time.monotonic())
            self._stop.wait(due - time.monotonic())
        for loop in loops:
            loop.close()


def _between(readings: list[tuple[int, int]], t_ns: int) -> int | None:
    """The counter at ``t_ns`` on the line between the readings around it."""
    at = bisect_left(readings, (t_ns, 0))
    if at == 0 or at == len(readings):
        return None
    (t0, v0), (t1, v1) = readings[at - 1], readings[at]
    return v0 + (v1 - v0) * (t_ns - t0) // max(1, t1 - t0)


class _DeviceLost(Exception):
    """The GPU fell off the bus, needs a reset, or answers nothing any more."""


class _DeviceLoop:
    """What is still asked of one device: a field that NVML refuses is asked no more."""

    def __init__(
        self, nvml: Any, handle: Any, index: int, miss: Callable[[str, str, str], None]
    ) -> None:
        self.index = index
        self._nvml = nvml
        self._handle = handle
        self._report = miss
        self._fields = list(FIELDS)
        self._failures: dict[str, int] = {}
        gpm = open_gpm(nvml, handle)
        self._gpm: GpmReader | None = None
        if isinstance(gpm, Unavailable):
            self._miss("gpm", gpm.reason)
        else:
            self._gpm = gpm

    def read(self) -> GpuSample:
        """One sample, stamped halfway through its reads (GPM comes after them).

        Raises:
            _DeviceLost: the device is gone.
        """
        values: dict[str, Any] = {}
        start = time.monotonic_ns()
        for field in list(self._fields):
            try:
                values.update(zip(field.names, field.read(self._nvml, self._handle), strict=True))
                self._failures.pop(field.names[0], None)
            except self._nvml.NVMLError as why:
                if self._refused(field.names[0], why):
                    self._fields.remove(field)
                    for name in field.names:
                        self._miss(f"nvml.{name}", str(why))
        stamp = (start + time.monotonic_ns()) // 2
        values.update(self._read_gpm())
        if not self._fields and self._gpm is None:
            raise _DeviceLost("it no longer answers")
        return GpuSample(stamp, self.index, **values)

    def close(self) -> None:
        if self._gpm is not None:
            self._gpm.close()
            self._gpm = None

    def _read_gpm(self) -> dict[str, float]:
        if self._gpm is None:
            return {}
        try:
            values = self._gpm.read()
            self._failures.pop("gpm", None)
        except self._nvml.NVMLError as why:
            if self._refused("gpm", why):
                self._miss("gpm", gpm_refusal(self._nvml, self._handle, why))
                self.close()
            return {}
        good = {}
        for name, value in values.items():
            if isinstance(value, Unavailable):
                self._miss(f"nvml.{name}", value.reason)
            else:
                good[name] = value
        return good

    def _refused(self, name: str, why: Any) -> bool:
        """Is this for good? An error that passes counts only when it comes again and again."""
        if why.value in DEVICE_GONE:
            raise _DeviceLost(str(why)) from None
        self._failures[name] = self._failures.get(name, 0) + 1
        return why.value not in TRANSIENT or self._failures[name] >= GIVE_UP_AFTER

    def _miss(self, name: str, reason: str) -> None:
        self._report(f"gpu{self.index}", name, reason)
