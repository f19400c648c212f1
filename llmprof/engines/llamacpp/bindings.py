"""Which Python package brings llama.cpp: found, chosen, and asked what it is built with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any, Protocol

from llmprof.distribution import how_to_install
from llmprof.engines import driven
from llmprof.engines.llamacpp.settings import Settings
from llmprof.errors import MissingPackage

COMPILED, PREBUILT = "llama-cpp-python", "cyllama"
NAMES = (COMPILED, PREBUILT)
_MODULES = {COMPILED: "llama_cpp", PREBUILT: "cyllama"}
_MOST_SEQUENCES = 256
"""LLAMA_MAX_SEQ of llama.cpp's src/llama-cparams.h, which cyllama does not pass on."""


class Drive(driven.Drive, Protocol):
    """Prefill and decode steps of one model, in one context at a time."""

    def reshape(self, settings: Settings) -> None:
        """Another context on the same model.

        Raises:
            LoadAgain: the binding cannot do that; nothing has changed.
            OutOfMemory: it does not fit.
        """


@dataclass(frozen=True)
class Binding:
    """One package, imported."""

    name: str
    versions: dict[str, str]
    on_gpu: bool
    """Built for a GPU."""
    built_for: str
    """``cuda``, or what else llama.cpp's own words name."""
    most_sequences: int
    drives: dict[str, Callable[[Settings], Drive]]
    """``generator`` and ``forward``."""


def open_binding(wanted: str) -> Binding:
    """Import a binding.

    Without a wish llama-cpp-python comes first: whoever has it compiled it, perhaps for CUDA.

    Args:
        wanted: one of ``NAMES``, or ``auto``.

    Raises:
        MissingPackage: not there, or it does not load. A llama-cpp-python that is there and
            broken is never passed over: its GPU build would silently become a CPU build.
    """
    there = [name for name in NAMES if util.find_spec(_MODULES[name]) is not None]
    name = wanted if wanted != "auto" else (there[0] if there else PREBUILT)
    try:
        return _llama_cpp_python() if name == COMPILED else _cyllama()
    except (ImportError, OSError, RuntimeError) as why:
        extra = "llamacpp-source" if name == COMPILED else "llamacpp"
        raise MissingPackage(
            f"engine 'llamacpp' needs {name} ({why}); install it with: {how_to_install(extra)}"
        ) from None


def _llama_cpp_python() -> Binding:
    module = import_module("llama_cpp")
    from llmprof.engines.llamacpp.llama_cpp_python import ForwardDrive, GeneratorDrive

    said = module.llama_print_system_info().decode("utf-8", "replace")
    return Binding(
        name=COMPILED,
        versions={"llama_cpp_python": str(module.__version__)},
        on_gpu=bool(module.llama_supports_gpu_offload()),
        built_for=_built_for([said]),
        most_sequences=int(module.llama_max_parallel_sequences()),
        drives={"generator": GeneratorDrive, "forward": ForwardDrive},
    )


def _cyllama() -> Binding:
    package = import_module("cyllama")
    module = import_module("cyllama.llama.llama_cpp")
    from llmprof.engines.llamacpp.cyllama import ForwardDrive, GeneratorDrive

    return Binding(
        name=PREBUILT,
        versions={"cyllama": str(package.__version__), "llama.cpp": _tag(package)},
        on_gpu=bool(module.llama_supports_gpu_offload()),
        built_for=_built_for(module.ggml_backend_reg_names()),
        most_sequences=_MOST_SEQUENCES,
        drives={"generator": GeneratorDrive, "forward": ForwardDrive},
    )


def _built_for(words: list[str]) -> str:
    return "cuda" if any("CUDA" in word for word in words) else "gpu"


def _tag(package: Any) -> str:
    """The release of llama.cpp inside, from the file that cyllama's build leaves: ``b9190``."""
    try:
        built = json.loads((Path(package.__file__).parent / "build_config.json").read_text())
        return str(built["versions"]["llama_cpp_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"  # a later cyllama may keep it elsewhere
