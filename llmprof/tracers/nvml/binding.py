"""The Python module that calls NVML: nvidia-ml-py's ``pynvml``, not what else has that name.

The retired package *pynvml* (up to 11.5) installs a folder ``pynvml``, which Python prefers to
nvidia-ml-py's ``pynvml.py`` beside it; it knows nothing that came after CUDA 11.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType
from typing import Any

ERROR_FUNCTION_NOT_FOUND = 13  # NVML_ERROR_FUNCTION_NOT_FOUND of nvml.h
_NAME = "_llmprof_pynvml"


class Binding:
    """The module, in which a name that is too new is refused as NVML refuses a function: with its
    own ``NVMLError`` of the code 13, whose text names the package. An AttributeError in the
    sampling thread would end it without a word."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        where = _package(module)

        def text(_error: object) -> str:
            return (
                f"the installed {where} is too old for this: pip uninstall pynvml, then"
                " pip install -U nvidia-ml-py"
            )

        self._too_old: Any = type("TooOld", (module.NVMLError,), {"__str__": text})

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._module, name)
        except AttributeError:
            if name.startswith("__"):
                raise
            raise self._too_old(ERROR_FUNCTION_NOT_FOUND) from None


def load() -> Binding:
    """nvidia-ml-py's module, also where the old package hides it.

    Raises:
        ImportError: neither is installed.
    """
    import pynvml

    if hasattr(pynvml, "__path__") and (hidden := _hidden()) is not None:
        return Binding(hidden)
    return Binding(pynvml)


def _hidden() -> ModuleType | None:
    """``pynvml.py`` of nvidia-ml-py, loaded by its path; ``None`` where there is none."""
    try:
        found = distribution("nvidia-ml-py")
    except PackageNotFoundError:
        return None
    path = found.locate_file("pynvml.py")
    if (known := sys.modules.get(_NAME)) is not None:
        return known
    spec = importlib.util.spec_from_file_location(_NAME, str(path))
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module  # its dataclasses look there
    try:
        spec.loader.exec_module(module)
    except OSError:
        del sys.modules[_NAME]
        return None
    return module


def _package(module: ModuleType) -> str:
    name = "pynvml" if hasattr(module, "__path__") else "nvidia-ml-py"
    try:
        return f"{name} {distribution(name).version}"
    except PackageNotFoundError:
        return name
