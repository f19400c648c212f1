"""The CUDA extensions of the ExLlama packages: found ready-made, or built at first use.

The wheels hold sources only and call ``torch.utils.cpp_extension.load`` when they are imported;
torch keeps the result in ``TORCH_EXTENSIONS_DIR`` (or ``~/.cache/torch_extensions``). A machine
without a compiler can take extensions built elsewhere from ``LLMPROF_EXTENSIONS_DIR``, see
``extension_folder``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from llmprof.engines.base import Progress
from llmprof.engines.exllama.heartbeat import heartbeat
from llmprof.errors import EngineFailure, MissingPackage, UsageError
from llmprof.plaintext import one_line

FOLDER_VARIABLE = "LLMPROF_EXTENSIONS_DIR"
_BUILDING = "building the CUDA extension, first use takes minutes"
_STALE_LOCK_S = 15 * 60.0


def extension_folder(package: str, version: str, capability: tuple[int, int]) -> str:
    """Name of the subfolder that holds ``NAME.so`` for exactly this combination.

    An extension is bound to the package's version, Python, torch and the GPU's architecture:
    loading it into another torch crashes the process.
    """
    import torch

    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    arch = f"sm{capability[0]}{capability[1]}"
    return f"{package}-{version}-{python}-torch{torch.__version__}-{arch}"


@contextmanager
def extension_import(
    engine: str, extension: str, folder: str, progress: Progress
) -> Iterator[None]:
    """Around the import of an ExLlama package: its extension is found, or built with progress.

    Args:
        extension: module name, ``exllamav2_ext``.
        folder: from ``extension_folder``.

    Raises:
        UsageError: no compiler, or a ready-made extension that does not load.
        MissingPackage: no ninja.
        EngineFailure: the build failed; the compiler's whole output is on stderr.
    """
    from torch.utils import cpp_extension

    if extension not in sys.modules:
        ready = _ready_made(extension, folder)
        if ready is not None:
            sys.modules[extension] = load_extension(ready, extension)
        elif importlib.util.find_spec(extension) is None:
            _check_toolchain(engine, cpp_extension.CUDA_HOME)
    real = cpp_extension.load

    def load(name: str, sources: list[str], *arguments: Any, **options: Any) -> ModuleType:
        if name in sys.modules:
            return sys.modules[name]
        build = Path(cpp_extension._get_build_directory(name, False))
        _drop_stale_lock(build)

        def share() -> float:
            return len(list(build.glob("*.o"))) / max(1, len(sources))

        with heartbeat(progress, _BUILDING, share):
            try:
                module: ModuleType = real(name, sources, *arguments, **options)
            except (RuntimeError, OSError, ImportError) as why:
                raise _build_failure(engine, str(why)) from None
        # ExLlama v1 imports it by name right after, and torch no longer registers it.
        sys.modules[name] = module
        return module

    cpp_extension.load = load
    try:
        yield
    finally:
        cpp_extension.load = real


def keep_extension(extension: str, folder: str, target: Path) -> Path:
    """Copy a loaded extension to where ``LLMPROF_EXTENSIONS_DIR=target`` will find it.

    Raises:
        UsageError: it is not loaded or cannot be copied.
    """
    module = sys.modules.get(extension)
    if module is None or not module.__file__:
        raise UsageError(f"extension {extension} is not loaded, nothing to keep")
    copy = target / folder / f"{extension}.so"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module.__file__, copy)
    except OSError as why:
        raise UsageError(f"{one_line(str(copy))}: {why.strerror or why}") from None
    return copy


def _ready_made(extension: str, folder: str) -> Path | None:
    root = os.environ.get(FOLDER_VARIABLE)
    if not root:
        return None
    file = Path(root) / folder / f"{extension}.so"
    if file.is_file():
        return file
    print(f"llmprof: no {file}, building the extension", file=sys.stderr)
    return None


def load_extension(file: Path, extension: str) -> ModuleType:
    """That module from that file.

    Raises:
        UsageError: it does not load.
    """
    spec = importlib.util.spec_from_file_location(extension, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{one_line(str(file))}: not an extension module")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as why:
        reason = one_line(str(why), 160)
        raise UsageError(
            f"{one_line(str(file))} does not load: {reason}; remove it to build anew"
        ) from None
    return module


def _check_toolchain(engine: str, cuda_home: str | None) -> None:
    nvcc = Path(cuda_home, "bin", "nvcc") if cuda_home else None
    if nvcc is None or not nvcc.is_file():
        raise UsageError(
            f"{engine}: its CUDA extension has to be built and there is no nvcc"
            f" ({f'not in {cuda_home}/bin' if cuda_home else 'CUDA_HOME is not set'}); install the"
            f" CUDA toolkit of torch's version, or set {FOLDER_VARIABLE} to a folder of built ones"
        )
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None and shutil.which("g++") is None:
        raise UsageError(
            f"{engine}: its CUDA extension has to be built and there is no C++ compiler"
            f" ({one_line(compiler, 60)}); install g++"
        )
    if shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None:
        raise MissingPackage(
            f"{engine}: its CUDA extension has to be built with ninja; pip install ninja"
        )


def _drop_stale_lock(build: Path) -> None:
    """torch waits for ever on the lock of a build that was killed."""
    lock = build / "lock"
    try:
        newest = max(file.stat().st_mtime for file in build.iterdir())
        if lock.exists() and time.time() - newest > _STALE_LOCK_S:
            print(f"llmprof: removing the lock of a build that ended: {lock}", file=sys.stderr)
            lock.unlink()
    except (OSError, ValueError):
        return  # nothing there yet, or another build is at it right now


def _build_failure(engine: str, output: str) -> EngineFailure:
    print(output, file=sys.stderr)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    reason = one_line(" | ".join(telling[-3:]), 240)
    return EngineFailure(f"{engine}: its CUDA extension could not be built: {reason}")
