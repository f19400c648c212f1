"""TVM as MLC's libraries need it: versions that fit, the CUDA runtime, the libraries of a runtime
without its compiler. Everything is imported late.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage, ModelError, UsageError
from llmprof.models.mlc.library import Library
from llmprof.models.mlc.metadata import MlcMetadata, parse_metadata
from llmprof.plaintext import one_line

FITTING = ("0.26.0", "0.1.15.post2")
"""apache-tvm and apache-tvm-ffi that load what MLC LLM of July 2026 compiles."""
_PAIRS = {"0.26.0": "0.1.15.post2", "0.25.0.post1": "0.1.12"}
_INSTALL = f"pip install apache-tvm=={FITTING[0]} apache-tvm-ffi=={FITTING[1]}"
_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")


@dataclass(frozen=True)
class Tvm:
    """The imported package; ``ffi`` is ``tvm_ffi``."""

    tvm: Any
    ffi: Any
    runtime_only: bool
    cudart: str | None
    """The CUDA runtime that was loaded first."""

    @property
    def versions(self) -> dict[str, str]:
        return {"tvm": str(self.tvm.__version__), "tvm_ffi": str(self.ffi.__version__)}

    def function(self, name: str) -> Any:
        return self.ffi.get_global_func(name)

    def device(self, kind: str, index: int) -> Any:
        return self.tvm.runtime.device(kind, index)


def open_tvm(cuda: bool, engine: str = "mlc") -> Tvm:
    """Import TVM, made ready for CUDA where asked for.

    Raises:
        MissingPackage: not installed, or a tvm and tvm-ffi that do not fit each other.
    """
    if util.find_spec("tvm") is None or util.find_spec("tvm_ffi") is None:
        raise MissingPackage(
            f"engine {engine!r} needs TVM; install it with: {how_to_install('mlc')}"
            f" ({_INSTALL}), or MLC LLM's own wheels"
        )
    # libtvm_runtime_cuda.so and FlashInfer's kernels take the CUDA runtime from the process; a
    # library loaded without it ends the process (undefined symbol __cudaRegisterFatBinary).
    cudart = preload_cudart() if cuda else None
    try:
        tvm = import_module("tvm")
        ffi = import_module("tvm_ffi")
        import_module("tvm.runtime.vm")
        runtime_only = bool(tvm.base._RUNTIME_ONLY)
    except Exception as why:  # noqa: BLE001 - a wrong pair fails in many ways
        raise MissingPackage(_misfit(why)) from None
    if runtime_only:
        _load_backends(tvm, cuda)
    return Tvm(tvm, ffi, runtime_only, cudart)


def preload_cudart() -> str | None:
    """Load the CUDA runtime for all to see; its path, or ``None`` where there is none."""
    for candidate in _cudart_candidates():
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
            return candidate
        except OSError:
            continue
    return None


def _cudart_candidates() -> Iterator[str]:
    for name in _RUNTIMES:
        yield name
        for folder in sys.path:
            # Where NVIDIA's wheels for CUDA 13 and 12 put it.
            yield from map(str, Path(folder or ".").glob(f"nvidia/*/lib/{name}"))
        root = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        yield f"{root}/lib64/{name}"
        yield from sorted(map(str, Path("/usr/local").glob(f"cuda-*/lib64/{name}")), reverse=True)


def _load_backends(tvm: Any, cuda: bool) -> None:
    """A TVM without its compiler does not load its own backends. One that has no such files has
    them inside its runtime (MLC's own builds)."""
    folder = Path(tvm.base._LOADED_LIBS["tvm_runtime"]._name).parent
    for name in ("libtvm_runtime_extra.so", *(("libtvm_runtime_cuda.so",) if cuda else ())):
        if not (folder / name).is_file():
            continue
        try:
            ctypes.CDLL(str(folder / name))
        except OSError as why:
            raise MissingPackage(
                f"mlc: TVM's {name} does not load ({one_line(str(why), 160)});"
                f" install a whole TVM: {_INSTALL}"
            ) from None


def _misfit(why: BaseException) -> str:
    found = {name: _version(name) for name in ("apache-tvm", "apache-tvm-ffi")}
    text = f"mlc: TVM does not import ({type(why).__name__}: {one_line(str(why), 160)})"
    if None in found.values():
        return f"{text}; install it with: {_INSTALL}"
    tvm, ffi = found["apache-tvm"], found["apache-tvm-ffi"]
    text += f"; installed are apache-tvm {tvm} with apache-tvm-ffi {ffi}"
    partner = _PAIRS.get(str(tvm))
    if partner is not None and partner != ffi:
        return f"{text}, {tvm} goes with apache-tvm-ffi {partner}"
    return f"{text}; a pair that fits MLC LLM of July 2026: {_INSTALL}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def choose_device(asked: str, library: Library) -> tuple[str, int]:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` to a kind and a number.

    Raises:
        UsageError: malformed, or the library is compiled for the other kind.
    """
    kind, _, number = asked.partition(":")
    if asked == "auto":
        kind = "cuda" if library.cuda else "cpu"
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"mlc:device={one_line(asked, 40)}: choose from auto, cpu, cuda, cuda:N")
    if (kind == "cuda") != library.cuda:
        made = "CUDA" if library.cuda else "another device than CUDA"
        raise ModelError(
            f"{library.shown} is compiled for {made}, device={kind} was asked for;"
            f" compile it with: mlc_llm compile --device {kind}"
        )
    return kind, int(number or 0)


def open_device(tvm: Tvm, library: Library, kind: str, index: int) -> Any:
    """The device, once it is known that the library's kernels run on it.

    Raises:
        UsageError: no such device.
        ModelError: compiled for another compute capability.
        MissingPackage: the library needs the CUDA runtime and there is none.
    """
    device = tvm.device(kind, index)
    if kind == "cpu":
        return device
    if not device.exist:
        have = 0
        while have < index and tvm.device(kind, have).exist:
            have += 1
        if have:
            range_text = "cuda:0" if have == 1 else f"cuda:0 to cuda:{have - 1}"
            raise UsageError(f"mlc:device={kind}:{index}: TVM sees {range_text} only")
        raise UsageError(
            f"mlc: TVM sees no {kind}:{index}; {library.shown} holds CUDA kernels,"
            " a library for the CPU is made with: mlc_llm compile --device cpu"
        )
    major, _, minor = str(device.compute_version).partition(".")
    capability = (int(major), int(minor or 0))
    if not library.runs_on(capability):
        made = ", ".join(f"{a // 10}.{a % 10}" for a in sorted(library.binaries | library.ptx))
        raise ModelError(
            f"{library.shown} is compiled for compute capability {made}; {kind}:{index}"
            f" has {capability[0]}.{capability[1]}: compile it there, or with MLC_MULTI_ARCH"
        )
    _check_cudart(tvm, library)
    return device


def load_library(tvm: Tvm, library: Library) -> tuple[Any, MlcMetadata]:
    """The loaded module and what it says about itself.

    Raises:
        ModelError: TVM does not load it (another TVM, another machine), or no ``_metadata``.
    """
    machine = tvm.tvm.runtime
    try:
        module = machine.load_module(str(library.path))
        cpu = import_module("tvm.runtime.vm").VirtualMachine(module, machine.device("cpu", 0))
    except Exception as why:  # noqa: BLE001 - what TVM raises
        have = " and ".join(f"{name} {version}" for name, version in tvm.versions.items())
        raise ModelError(
            f"{library.shown} ({library.machine}): {have} does not load it"
            f" ({one_line(_reason(why), 160)}); libraries of MLC LLM of July 2026 load with"
            f" apache-tvm {FITTING[0]} and apache-tvm-ffi {FITTING[1]}, others with the TVM"
            " that compiled them"
        ) from None
    if not cpu.module.implements_function("_metadata"):
        raise ModelError(
            f"{library.shown}: no _metadata function, so not compiled by mlc_llm compile"
        )
    return module, parse_metadata(str(cpu["_metadata"]()), library.shown)


def open_library(library: Library) -> MlcMetadata:
    """What a library says about itself, on a machine that need not have its device.

    Raises:
        MissingPackage: no TVM, or no CUDA runtime for a library that needs it.
        ModelError: TVM does not load it.
    """
    tvm = open_tvm(library.cuda)
    _check_cudart(tvm, library)
    return load_library(tvm, library)[1]


def _check_cudart(tvm: Tvm, library: Library) -> None:
    if library.needs_cudart and tvm.cudart is None:
        raise MissingPackage(
            f"{library.shown} holds FlashInfer kernels and needs the CUDA runtime"
            f" ({_RUNTIMES[0]}), which was not found; install it with: pip install"
            " nvidia-cuda-runtime, or set CUDA_HOME"
        )


def _reason(why: BaseException) -> str:
    lines = [line for line in str(why).splitlines() if line.strip()]
    return lines[-1] if lines else type(why).__name__
