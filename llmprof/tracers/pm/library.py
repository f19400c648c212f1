"""CUPTI's PM sampling and profiler host entry points, by ctypes. Standard library only.

Each ``Params`` class is the struct of one function, fields in header order: cupti_pmsampling.h,
cupti_profiler_host.h, cupti_profiler_target.h and cupti_target.h of CUPTI 13.0. 12.8 and 12.9 are
the same; 12.6, the first with PM sampling, has no ``hwBufferAppendMode``; 13.5 appends a field to
``CUpti_Profiler_Host_Initialize_Params``, which ``structSize`` tells it is not there.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_double, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar, TypeVar

TRIGGER_SYSCLK, TRIGGER_TIME = 0, 1
"""``CUpti_PmSampling_TriggerMode``: interval in SYS clocks, or in ns (not on Turing and GA100)."""
KEEP_OLDEST = 0
"""``CUpti_PmSampling_HardwareBuffer_AppendMode``: a full buffer is reported, not overwritten."""
COUNTER_DATA_FULL = 1
"""``CUpti_PmSampling_DecodeStopReason``: the image is full, records are left to decode."""
PM_SAMPLING = 1
"""``CUpti_ProfilerType``."""
VERSION_WITH_APPEND_MODE = 26
"""``CUPTI_API_VERSION`` of CUDA 12.8."""

# cupti_result.h
INVALID_PARAMETER, INVALID_OPERATION, OUT_OF_MEMORY, NOT_INITIALIZED = 1, 7, 8, 15
INVALID_METRIC_NAME, HARDWARE_BUSY, NOT_SUPPORTED = 17, 26, 27
VIRTUALIZED, PRIVILEGES, VIRTUALIZED_PRIVILEGES = 33, 35, 40
MIG, WSL, INVALID_CHIP_NAME = 43, 45, 46


_Fields = tuple[tuple[str, Any], ...]


class PmError(Exception):
    """A call that CUPTI refused: ``function`` with ``CUptiResult`` ``code``."""

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"{function} failed: {text} ({code})")
        self.function = function
        self.code = code


class Params(ctypes.Structure):
    """Head of every profiler struct: ``size_t structSize; void *pPriv``."""

    function: ClassVar[str]
    _fields_: ClassVar[_Fields] = (("structSize", c_size_t), ("pPriv", c_void_p))

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        # CUPTI_PROFILER_STRUCT_SIZE: up to the end of the last field, without the padding.
        last = getattr(type(self), self._fields_[-1][0])
        self.structSize = last.offset + last.size


_P = TypeVar("_P", bound=Params)
_SAMPLER = ("sampler", c_void_p)
_HOST = ("host", c_void_p)
_IMAGE: _Fields = (("image", c_void_p), ("image_size", c_size_t))
_SIZED_IMAGE: _Fields = (("image_size", c_size_t), ("image", c_void_p))
_METRICS: _Fields = (("metrics", c_void_p), ("metric_count", c_size_t))


class ProfilerInitialize(Params):
    function = "cuptiProfilerInitialize"


class ProfilerDeInitialize(Params):
    function = "cuptiProfilerDeInitialize"


class DeviceGetChipName(Params):
    function = "cuptiDeviceGetChipName"
    _fields_ = (("device", c_size_t), ("chip", c_char_p))


class GetCounterAvailability(Params):
    """``image`` NULL asks for ``image_size``."""

    function = "cuptiPmSamplingGetCounterAvailability"
    _fields_ = (("device", c_size_t), *_SIZED_IMAGE)


class HostInitialize(Params):
    function = "cuptiProfilerHostInitialize"
    _fields_ = (
        ("profiler_type", c_int),
        ("chip", c_char_p),
        ("availability", c_void_p),
        _HOST,
    )


class HostDeinitialize(Params):
    function = "cuptiProfilerHostDeinitialize"
    _fields_ = (_HOST,)


class HostConfigAddMetrics(Params):
    function = "cuptiProfilerHostConfigAddMetrics"
    _fields_ = (_HOST, *_METRICS)


class HostGetConfigImageSize(Params):
    function = "cuptiProfilerHostGetConfigImageSize"
    _fields_ = (_HOST, ("image_size", c_size_t))


class HostGetConfigImage(Params):
    function = "cuptiProfilerHostGetConfigImage"
    _fields_ = (_HOST, *_SIZED_IMAGE)


class HostGetNumOfPasses(Params):
    function = "cuptiProfilerHostGetNumOfPasses"
    _fields_ = (*_SIZED_IMAGE, ("passes", c_size_t))


class HostEvaluateToGpuValues(Params):
    """``values``: ``double[metric_count]`` of sample ``index``."""

    function = "cuptiProfilerHostEvaluateToGpuValues"
    _fields_ = (
        _HOST,
        *_IMAGE,
        ("index", c_size_t),
        *_METRICS,
        ("values", c_void_p),
    )


class Enable(Params):
    function = "cuptiPmSamplingEnable"
    _fields_ = (("device", c_size_t), _SAMPLER)


class Disable(Params):
    function = "cuptiPmSamplingDisable"
    _fields_ = (_SAMPLER,)


class SetConfig(Params):
    function = "cuptiPmSamplingSetConfig"
    _fields_ = (
        _SAMPLER,
        *_SIZED_IMAGE,
        ("hardware_buffer_size", c_size_t),
        ("interval", c_uint64),
        ("trigger", c_int),
        ("append_mode", c_int),
    )


class GetCounterDataSize(Params):
    function = "cuptiPmSamplingGetCounterDataSize"
    _fields_ = (
        _SAMPLER,
        *_METRICS,
        ("max_samples", c_uint32),
        ("image_size", c_size_t),
    )


class ImageInitialize(Params):
    function = "cuptiPmSamplingCounterDataImageInitialize"
    _fields_ = (_SAMPLER, *_SIZED_IMAGE)


class Start(Params):
    function = "cuptiPmSamplingStart"
    _fields_ = (_SAMPLER,)


class Stop(Params):
    function = "cuptiPmSamplingStop"
    _fields_ = (_SAMPLER,)


class DecodeData(Params):
    function = "cuptiPmSamplingDecodeData"
    _fields_ = (_SAMPLER, *_IMAGE, ("stop_reason", c_int), ("overflow", c_uint8))


class GetCounterDataInfo(Params):
    function = "cuptiPmSamplingGetCounterDataInfo"
    _fields_ = (
        *_IMAGE,
        ("total", c_size_t),
        ("populated", c_size_t),
        ("completed", c_size_t),
    )


class GetSampleInfo(Params):
    """Times of sample ``index``, ns."""

    function = "cuptiPmSamplingCounterDataGetSampleInfo"
    _fields_ = (
        _SAMPLER,
        *_IMAGE,
        ("index", c_size_t),
        ("start", c_uint64),
        ("end", c_uint64),
    )


class PmLibrary:
    """One loaded libcupti.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        self._lib = ctypes.CDLL(path)
        version = c_uint32()
        self._lib.cuptiGetVersion(ctypes.byref(version))
        self.version = version.value

    def call(self, params: _P) -> _P:
        """Call ``params.function``; outputs are in ``params``, which is returned.

        Raises:
            PmError: CUPTI refused, or is too old to have the function.
        """
        try:
            function = getattr(self._lib, params.function)
        except AttributeError:
            raise PmError(
                params.function, NOT_SUPPORTED, "CUPTI before CUDA 12.6 has no PM sampling"
            ) from None
        code = function(ctypes.byref(params))
        if code:
            text = c_char_p()
            self._lib.cuptiGetResultString(code, ctypes.byref(text))
            raise PmError(params.function, code, (text.value or b"?").decode(errors="replace"))
        return params


class Image:
    """A buffer that CUPTI fills, with the fields that its structs want."""

    def __init__(self, size: int) -> None:
        self._bytes = ctypes.create_string_buffer(size)
        self.size = size
        self.address = ctypes.addressof(self._bytes)


class Metrics:
    """Metric names as ``const char **``, and room for their values."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._pointers = (c_char_p * len(names))(*(name.encode() for name in names))
        self.address = ctypes.addressof(self._pointers)
        self.values = (c_double * len(names))()
