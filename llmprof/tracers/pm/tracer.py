"""PM sampling: the GPU's own DRAM and SM counters at kHz rates, from outside the engine.

The only *measured* bandwidth fine enough for a single decode step. It is device-wide: whatever else
runs on the GPU is in it too. CUPTI works in a child process (``pm_sampler``), since it has crashed
before and a crash must not end the session; no CUDA context is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.children.child import ChildFailed, TracerChild
from llmprof.records import Unavailable
from llmprof.tracers.cupti.library import candidates, driver_release

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmprof.tracers.pm.clock import Placement

OPEN_TIMEOUT_S = 60.0
"""The first use of a driver can take seconds."""
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 120.0
DRIVER_PARAMETERS = Path("/proc/driver/nvidia/params")
CAP_SYS_ADMIN = 21  # linux/capability.h
INSTALL = (
    "install nvidia-cuda-cupti (CUDA 13) or nvidia-cuda-cupti-cu12 beside llmprof, "
    "or the CUDA toolkit"
)


@dataclass(frozen=True, eq=False)
class PmSamples:
    """The samples of one round, oldest first. Arrays have one entry a sample.

    Percentages are of the peak that the chip sustains, over the sample's own time.
    """

    start_ns: NDArray[np.int64]
    """CLOCK_MONOTONIC, as good as ``clock`` says."""
    end_ns: NDArray[np.int64]
    dram_pct: NDArray[np.float64]
    """``dram__throughput``: reads and writes."""
    dram_read_pct: NDArray[np.float64]
    """``dram__read_throughput``; NaN where the chip cannot count it beside the others."""
    sm_active_pct: NDArray[np.float64]
    """``sm__cycles_active``: SMs with at least one warp."""
    further: dict[str, NDArray[np.float64]]
    """Column of ``sampler.FURTHER`` → values, where it was counted."""
    interval_ns: int
    """Achieved: median distance of two samples. It can be longer than what was asked for."""
    requested_interval_ns: int
    clock: Placement
    overflow: bool
    """The hardware buffer was full: samples are missing."""
    gaps: int
    """Places where at least one sample is missing between two others."""
    dropped: int
    """Samples left out: without a time of their own, or beyond what is kept of one round."""


class PmTracer:
    """Samples one device, round by round; not for use by several threads.

    After a refusal or a death of the sampler's process it stays ``Unavailable`` with that reason.

    Args:
        device_index: CUDA ordinal, as an engine's process with the same environment sees it.
        interval_ns: what to ask for; ``PmSamples.interval_ns`` is what was got.
        libraries: libcupti paths to try, best first; found by themselves if not given.
        further: also count writes, L2 and the tensor pipe, where one pass holds them.
    """

    name = "pm"
    cost = (
        "nothing in the engine's process (median step within noise on an H100); "
        "about half a core for another process at 5 kHz"
    )

    def __init__(
        self,
        device_index: int,
        interval_ns: int = 200_000,
        libraries: Iterable[str] | None = None,
        further: bool = False,
    ) -> None:
        self._further = further
        self.device_index = device_index
        self.interval_ns = interval_ns
        self.facts: dict[str, Any] = {}
        """Once open: ``chip``, ``uuid`` (as NVML writes it), ``cupti_version``, ``trigger``, and
        ``refused``: column → why it is not counted."""
        self._libraries = None if libraries is None else list(libraries)
        self._child: TracerChild | None = None
        self._refused: Unavailable | None = None

    def probe(self) -> Unavailable | None:
        """Open the counters and give them back (a second or so); why that fails, or ``None``.

        Only the attempt shows whether the chip is supported and nobody else holds the counters.
        They are held as briefly as can be, since the driver may fix clocks meanwhile.
        """
        refused = self._open()
        if refused is None:
            self.close()
        return refused

    def open(self) -> Unavailable | None:
        """Hold the counters, so that ``start_round`` begins at once."""
        return self._open()

    def start_round(self, expected_seconds: float) -> Unavailable | None:
        """Begin to sample; when this returns ``None``, samples are being taken."""
        refused = self._open()
        if refused is not None:
            return refused
        request = {"do": "start", "expected_seconds": expected_seconds}
        answer = self._ask(request, START_TIMEOUT_S)
        return answer if isinstance(answer, Unavailable) else None

    def stop_round(self) -> PmSamples | Unavailable:
        """End sampling; the samples since ``start_round``."""
        if self._child is None:
            if self._refused is not None:
                return self._refused
            return Unavailable("PM sampling was not started")
        answer = self._ask({"do": "stop"}, STOP_TIMEOUT_S)
        if isinstance(answer, Unavailable):
            return answer
        return _samples(*answer, self.interval_ns)

    def close(self) -> None:
        """Give the counters back. Closing twice is fine; the next round opens again."""
        if self._child is not None:
            self._child.close()
            self._child = None

    @property
    def pid(self) -> int | None:
        """The sampler's process, while it holds the counters."""
        return None if self._child is None else self._child.pid

    def _ask(
        self, request: dict[str, Any], timeout_s: float
    ) -> tuple[dict[str, Any], bytes] | Unavailable:
        assert self._child is not None
        try:
            return self._child.ask(request, timeout_s)
        except ChildFailed as why:
            self._child.kill()
            self._child = None
            self._refused = Unavailable(str(why))
            return self._refused

    def _open(self) -> Unavailable | None:
        if self._child is not None or self._refused is not None:
            return self._refused
        self._refused = self._open_any()
        return self._refused

    def _open_any(self) -> Unavailable | None:
        """Try the libraries in turn; ``None`` when one works, else what the best one said."""
        refused = permission()
        if refused is not None:
            return refused
        found = self._libraries
        if found is None:
            release = driver_release()
            if isinstance(release, Unavailable):
                return release
            found = usable(candidates(), release)
        reasons = []
        for library in found:
            folder = Path(library).parent if "/" in library else None
            missing = None if folder is None else missing_beside(folder)
            if missing is not None:
                reasons.append(Unavailable(f"{missing} is missing in {folder}: {INSTALL}"))
                continue
            # A library newer than the driver may crash where an older one works.
            answer = self._open_with(library, folder)
            if answer is None:
                return None
            reasons.append(answer)
        return reasons[0] if reasons else Unavailable(f"libcupti was not found: {INSTALL}")

    def _open_with(self, library: str, folder: Path | None) -> Unavailable | None:
        request = {
            "do": "open",
            "library": library,
            "device": self.device_index,
            "interval_ns": self.interval_ns,
            "further": self._further,
        }
        # libcupti has no RPATH: it finds libnvperf_*.so on the library path only.
        paths = [] if folder is None else [str(folder)]
        if os.environ.get("LD_LIBRARY_PATH"):
            paths.append(os.environ["LD_LIBRARY_PATH"])
        environment = {"LD_LIBRARY_PATH": ":".join(paths)} if paths else {}
        self._child = TracerChild("the PM sampler", "llmprof.tracers.pm.sampler", environment)
        answer = self._ask(request, OPEN_TIMEOUT_S)
        if isinstance(answer, Unavailable):
            return answer
        self.facts = {k: v for k, v in answer[0].items() if k not in ("is", "blob")}
        return None


def usable(libraries: Iterable[str], release: int) -> list[str]:
    """Those of a CUDA major release that the driver serves; ``release``: ``driver_release()``."""
    majors = ((name, name.rpartition(".so.")[2].partition(".")[0]) for name in libraries)
    return [name for name, major in majors if not major.isdigit() or int(major) <= release // 1000]


def missing_beside(folder: Path) -> str | None:
    """Which of the libraries that libcupti loads by name is not in its folder."""
    names = ("libnvperf_host.so", "libnvperf_target.so")
    return next((name for name in names if not (folder / name).exists()), None)


def permission(
    parameters: Path = DRIVER_PARAMETERS, status: Path = Path("/proc/self/status")
) -> Unavailable | None:
    """Why this user may not read counters, by the driver's ``RmProfilingAdminOnly``.

    Unreadable files are no answer: then the driver is asked.
    """
    try:
        lines = parameters.read_text().splitlines()
        held = next(line for line in status.read_text().splitlines() if line.startswith("CapEff"))
    except (OSError, StopIteration):
        return None
    admin = int(held.split()[1], 16) >> CAP_SYS_ADMIN & 1
    if admin or "RmProfilingAdminOnly: 1" not in (" ".join(line.split()) for line in lines):
        return None
    return Unavailable(
        "the NVIDIA driver lets only administrators read performance counters "
        "(RmProfilingAdminOnly 1): run as root, add --cap-add SYS_ADMIN to the container, or load "
        "the driver with NVreg_RestrictProfilingToAdminUsers=0"
    )


def _samples(
    facts: dict[str, Any], blob: bytes, requested_interval_ns: int
) -> PmSamples | Unavailable:
    import numpy as np

    from llmprof.tracers.pm.clock import HostReadings, place
    from llmprof.tracers.pm.sampler import FURTHER

    count = int(facts["samples"])
    if count < 2:
        return Unavailable(f"PM sampling gave {count} samples: the round was too short")
    start, end = np.frombuffer(blob, np.int64, 2 * count).reshape(2, count)
    values = np.frombuffer(blob, np.float64, offset=2 * count * 8).reshape(-1, count)
    columns = dict(zip(facts["columns"], values, strict=True))
    interval = int(np.median(np.diff(end)))
    # Samples come on end; the first one or two of a run begin when the counters were opened (seen
    # on an H100: 0.27 s long at an interval of 0.2 ms), so what is too wide is no sample.
    good = end - start <= 2 * interval
    wide = count - int(np.count_nonzero(good))
    start, end, count = start[good], end[good], count - wide
    columns = {name: column[good] for name, column in columns.items()}
    readings = HostReadings(
        clocks=facts["clocks"],
        started=tuple(facts["started"]),
        stopped=tuple(facts["stopped"]),
        decodes=facts["decodes"],
    )
    start, end, clock = place(start, end, interval, readings)
    return PmSamples(
        start_ns=start,
        end_ns=end,
        dram_pct=columns["dram_pct"],
        dram_read_pct=columns.get("dram_read_pct", np.full(count, np.nan)),
        sm_active_pct=columns["sm_active_pct"],
        further={name: columns[name] for name in FURTHER if name in columns},
        interval_ns=interval,
        requested_interval_ns=requested_interval_ns,
        clock=clock,
        overflow=bool(facts["overflow"]),
        gaps=int(np.count_nonzero(start[1:] - end[:-1] > interval // 2)),
        dropped=int(facts["dropped"]) + wide,
    )
