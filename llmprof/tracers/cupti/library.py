"""Finding libcupti and calling it: ctypes signatures, error texts. Standard library only.

Signatures are those of cupti_activity.h, cupti_callbacks.h and cupti_result.h; each function used
here is the same from CUDA 12.0 to 13.5 (``cuptiActivityGetStructSize`` is newer, and optional).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

from llmprof.records import Unavailable

REQUESTED = ctypes.CFUNCTYPE(None, POINTER(c_void_p), POINTER(c_size_t), POINTER(c_size_t))
"""``void (uint8_t **buffer, size_t *size, size_t *maxNumRecords)``."""
COMPLETED = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_void_p, c_size_t, c_size_t)
"""``void (CUcontext, uint32_t streamId, uint8_t *buffer, size_t size, size_t validSize)``."""

_SIGNATURES: dict[str, list[object]] = {
    "cuptiGetVersion": [POINTER(c_uint32)],
    "cuptiGetResultString": [c_int, POINTER(c_char_p)],
    "cuptiGetTimestamp": [POINTER(c_uint64)],
    "cuptiGetCallbackName": [c_int, c_uint32, POINTER(c_char_p)],
    "cuptiSetThreadIdType": [c_int],
    "cuptiActivityRegisterCallbacks": [REQUESTED, COMPLETED],
    "cuptiActivityEnable": [c_int],
    "cuptiActivityDisable": [c_int],
    "cuptiActivityFlushAll": [c_uint32],
    "cuptiActivityGetNumDroppedRecords": [c_void_p, c_uint32, POINTER(c_size_t)],
    "cuptiActivityGetNextRecord": [c_void_p, c_size_t, POINTER(c_void_p)],
}
_STRUCT_SIZE = "cuptiActivityGetStructSize"

INSUFFICIENT_PRIVILEGES, VIRTUALIZED_PRIVILEGES, MULTIPLE_SUBSCRIBERS = 35, 40, 39
MAX_LIMIT_REACHED, NOT_INITIALIZED, UNKNOWN = 12, 15, 999
RUNTIME_CALLS = (
    13, 20, 22, 31, 41, 44, 51, 131, 137, 147, 165, 211, 214, 269, 311, 312, 430, 431,
)  # fmt: skip
DRIVER_CALLS = (17, 121, 126, 277, 278, 279, 306, 307, 442, 477, 514, 515, 652, 653)
"""Launches, graph launches, copies, sets, waits, allocations (cupti_runtime_cbid.h,
cupti_driver_cbid.h): every kernel has its launching call, with 1 record a kernel instead of 18. The
recorder (native/calls.c) has the same."""
RUNTIME_LAUNCHES, DRIVER_LAUNCHES = (
    (211, 214, 269, 311, 312, 430, 431),
    (307, 442, 477, 514, 515, 652, 653),
)
"""Of these: cudaLaunchKernel, cudaGraphLaunch, cuLaunchKernel… with their variants."""
THREAD_ID_SYSTEM = 1
"""``CUPTI_ACTIVITY_THREAD_ID_TYPE_SYSTEM``: gettid, which py-spy and the kernel know too."""

_WHEEL_FOLDERS = ("nvidia/cu1[0-9]/lib", "nvidia/cuda_cupti/lib")
_TOOLKITS = (
    "/usr/local/cuda*/lib64",
    "/usr/local/cuda*/extras/CUPTI/lib64",
    "/usr/local/cuda*/lib",
)
_NAME = "libcupti.so.1[2-9]*"

HOW_TO_INSTALL = (
    "libcupti was not found: install nvidia-cuda-cupti (CUDA 13) or nvidia-cuda-cupti-cu12 into "
    "the engine's environment, or the CUDA toolkit"
)


class CuptiError(Exception):
    """A call that CUPTI refused; the text says which, why and what to do."""


class Cupti:
    """One loaded libcupti with typed functions: ``cupti.lib.cuptiActivityEnable(10)``.

    ctypes releases the GIL around each call, which CUPTI's callbacks need.
    """

    def __init__(self, path: str) -> None:
        """Raises ``OSError`` (cannot be loaded) or ``AttributeError`` (not CUPTI, or too old)."""
        self.lib = ctypes.CDLL(path)
        # A bare name was found by the dynamic linker, which alone knows where.
        self.path = path if "/" in path else next(iter(mapped(path)), path)
        for name, arguments in _SIGNATURES.items():
            function = getattr(self.lib, name)
            function.argtypes, function.restype = arguments, c_int
        self._struct_size = getattr(self.lib, _STRUCT_SIZE, None)
        if self._struct_size is not None:
            self._struct_size.argtypes = [c_int, c_uint32, POINTER(c_size_t)]
            self._struct_size.restype = c_int
        version = c_uint32()
        self.check("cuptiGetVersion", self.lib.cuptiGetVersion(byref(version)))
        self.version = version.value

    def check(self, what: str, code: int) -> None:
        """Raises ``CuptiError`` with a reason for every code but 0."""
        if code:
            text = c_char_p()
            self.lib.cuptiGetResultString(code, byref(text))
            name = (text.value or b"?").decode(errors="replace")
            raise CuptiError(f"{what} failed: {name} ({code}){advice(code, self.path)}")

    def timestamp(self) -> int:
        """CUPTI's clock, ns; comparable to every ``start`` and ``end`` in a record."""
        value = c_uint64()
        self.check("cuptiGetTimestamp", self.lib.cuptiGetTimestamp(byref(value)))
        return value.value

    def dropped(self) -> int:
        """Records lost for want of a buffer since the last call (CUPTI resets its count)."""
        count = c_size_t()
        code = self.lib.cuptiActivityGetNumDroppedRecords(None, 0, byref(count))
        self.check("cuptiActivityGetNumDroppedRecords", code)
        return count.value

    def callback_name(self, domain: int, cbid: int) -> str | None:
        """``cudaLaunchKernel_v7000``; ``None`` for an id that this CUPTI does not know."""
        name = c_char_p()
        if self.lib.cuptiGetCallbackName(domain, cbid, byref(name)) or name.value is None:
            return None
        return name.value.decode(errors="replace")

    def record_sizes(self, data: bytes, limit: int) -> dict[int, int]:
        """Sizes by kind, found by walking at most ``limit`` records (about 3 µs each).

        Raises:
            CuptiError: one kind has two sizes, so no stride fits.
        """
        # CUPTI writes nothing into a buffer that it walks, but it wants it aligned: copy.
        copy = ctypes.create_string_buffer(data, len(data))
        base, record = ctypes.addressof(copy), c_void_p()
        sizes: dict[int, int] = {}
        before = -1
        for _ in range(limit + 1):
            code = self.lib.cuptiActivityGetNextRecord(base, len(data), byref(record))
            at = len(data) if code == MAX_LIMIT_REACHED else (record.value or base) - base
            if before >= 0 and at > before and code in (0, MAX_LIMIT_REACHED):
                kind = int.from_bytes(data[before : before + 4], "little")
                if sizes.setdefault(kind, at - before) != at - before:
                    raise CuptiError(
                        f"CUPTI {self.version} writes records of kind {kind} in several sizes"
                    )
            if code:
                break
            before = at
        return sizes

    def choose_calls(self, on: bool = True) -> int | None:
        """Record ``RUNTIME_CALLS`` and ``DRIVER_CALLS`` only; how many it refused.

        ``None``: this CUPTI cannot choose (before CUDA 12.5).
        """
        chosen = (
            ("cuptiActivityEnableRuntimeApi", RUNTIME_CALLS),
            ("cuptiActivityEnableDriverApi", DRIVER_CALLS),
        )
        functions = [(getattr(self.lib, name, None), calls) for name, calls in chosen]
        refused = 0
        for function, calls in functions:
            if function is None:
                return None
            function.argtypes, function.restype = [c_uint32, c_uint8], c_int
            refused += sum(1 for call in calls if function(call, int(on)))
        return refused

    def struct_size(self, kind: int) -> int | None:
        """Size of this library's own record; ``None`` where it cannot say (before 13.3 or so)."""
        size = c_size_t()
        if self._struct_size is None or self._struct_size(kind, 0, byref(size)):
            return None
        return size.value


def advice(code: int, path: str) -> str:
    """What to do about a CUPTI error, starting with a separator; empty where nothing is known."""
    if code in (INSUFFICIENT_PRIVILEGES, VIRTUALIZED_PRIVILEGES):
        return (
            "; GPU profiling is for administrators here: run as root, add --cap-add SYS_ADMIN to "
            "the container, or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
        )
    if code == MULTIPLE_SUBSCRIBERS:
        return f"; one CUPTI client a process: {holder(path)}"
    if code in (NOT_INITIALIZED, UNKNOWN):
        return f"; the driver is not usable here, or another client holds CUPTI: {holder(path)}"
    return ""


def holder(path: str) -> str:
    """Who may hold CUPTI in this process, from its environment and its loaded libraries."""
    injected = os.environ.get("CUDA_INJECTION64_PATH")
    if injected:
        return f"{injected} is injected (nsys or another profiler started this process)"
    ours = Path(path).resolve()
    others = [p for p in mapped("libcupti.so") if Path(p).resolve() != ours]
    if others:
        return f"{others[0]} is loaded too (nsys or an engine's own profiler)"
    return "torch.profiler, nsys or an engine's own profiler may be active"


def mapped(name: str) -> list[str]:
    """Paths of the libraries in this process whose file name contains ``name``."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {fields[5] for fields in (line.split(maxsplit=5) for line in lines) if len(fields) > 5}
    return sorted(p for p in paths if name in Path(p).name and Path(p).exists())


def candidates() -> list[str]:
    """Paths to try, best first: loaded already, from wheels on ``sys.path``, from a toolkit.

    A library that the engine has loaded or will load must be the one that is traced with, so the
    wheels of its own environment come before any toolkit.
    """
    found = mapped("libcupti.so")
    places: list[tuple[Path, tuple[str, ...]]] = []
    places += [(Path(entry), _WHEEL_FOLDERS) for entry in sys.path if entry]
    places.append((Path("/"), tuple(folder.lstrip("/") for folder in _TOOLKITS)))
    for root, folders in places:
        here = [p for folder in folders for p in root.glob(f"{folder}/{_NAME}")]
        found += [str(p) for p in sorted(here, key=_release, reverse=True)]
    return list(dict.fromkeys([*found, "libcupti.so.13", "libcupti.so.12"]))


def _release(path: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", path.name))


def driver_release() -> int | Unavailable:
    """The newest CUDA that the driver serves (13000 for 13.0), or why there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Unavailable("no NVIDIA driver: libcuda.so.1 was not found")
    version = c_int()
    if driver.cuDriverGetVersion(byref(version)):
        return Unavailable("the NVIDIA driver does not answer (cuDriverGetVersion failed)")
    return version.value


def load(path: str | None = None) -> Cupti | Unavailable:
    """The CUPTI to trace with, or why there is none.

    A library of a newer CUDA major release than the driver's is left out: it cannot attach.

    Args:
        path: take this library and no other, without looking for a driver.
    """
    if path is not None:
        return _open(path)
    release = driver_release()
    if isinstance(release, Unavailable):
        return release
    refused = ""
    for name in candidates():
        major = re.search(r"\.so\.(\d+)", name)
        if major and int(major[1]) > release // 1000:
            cupti: Cupti | Unavailable = Unavailable(
                f"{name} needs a driver for CUDA {major[1]} (this one serves {release // 1000})"
            )
        else:
            cupti = _open(name)
        if isinstance(cupti, Cupti):
            return cupti
        if "/" in name:  # a bare name that the linker does not find is no news
            refused = refused or cupti.reason
    return Unavailable(f"{refused}; {HOW_TO_INSTALL}" if refused else HOW_TO_INSTALL)


def _open(path: str) -> Cupti | Unavailable:
    try:
        return Cupti(path)
    except (OSError, CuptiError) as why:
        return Unavailable(f"{path} cannot be used: {why}")
    except AttributeError as why:
        return Unavailable(f"{path} is no CUPTI of CUDA 12 or newer: {why}")
