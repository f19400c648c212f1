"""What one interpreter has for its engines: packages and CUPTI. Standard library only.

``llmprof doctor`` calls ``look`` for its own interpreter, and runs this file with each other one,
as a worker would be: ``PYTHON probe.py ENGINE…`` prints the same as one line of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Engine → {module: its distribution}; without the first of them the engine does not start, without
# the others some of it is lacking (``doctor.LACKING``).
PACKAGES = {
    "torch": {"torch": "torch", "safetensors": "safetensors", "gguf": "gguf"},
    "llamacpp": {"cyllama": "cyllama", "gguf": "gguf"},
    "mlc": {"tvm": "apache-tvm", "mlc_llm": "mlc-llm"},
    "vllm": {"vllm": "vllm", "torch": "torch"},
    "transformers": {"transformers": "transformers", "torch": "torch", "greenlet": "greenlet"},
    **{
        name: {name: name, "torch": "torch", "safetensors": "safetensors"}
        for name in ("exllama", "exllamav2", "exllamav3")
    },
}
INSTEAD = {"cyllama": ("llama_cpp", "llama-cpp-python")}
"""Module → the module and distribution that take its place where they are installed."""
_LINKER_FOLDERS = ("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu")


def look(engines: Sequence[str]) -> dict[str, Any]:
    """Facts about this interpreter; imports no engine and makes no CUDA call.

    Returns:
        ``{"python": "3.12.3", "cupti": [paths], "engines": {name: {"target": "module:Class" or
        None, "packages": {module: version or None}}}}``, packages in the order of ``PACKAGES``; a
        third party's engine has its own top-level module for a package.
    """
    from llmprof.engines.registry import engine_names

    targets = engine_names()
    found = {}
    for name in engines:
        target = targets.get(name)
        own = {} if target is None else {target.partition(".")[0].partition(":")[0]: ""}
        packages = [_present(*wanted) for wanted in PACKAGES.get(name, own).items()]
        found[name] = {
            "target": target,
            "packages": {module: version_of(module, dist) for module, dist in packages},
        }
    return {"python": platform.python_version(), "cupti": _cupti(), "engines": found}


def _present(module: str, distribution: str) -> tuple[str, str]:
    other = INSTEAD.get(module)
    return other if other and version_of(*other) else (module, distribution)


def version_of(module: str, distribution: str) -> str | None:
    """Version of a top-level module that could be imported, ``installed`` where it has none."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except (ImportError, ValueError):  # ValueError: a module without a spec
        return None
    try:
        return metadata.version(distribution or module)
    except (metadata.PackageNotFoundError, ValueError):
        return "installed"


def _cupti() -> list[str]:
    from llmprof.tracers.cupti.library import candidates

    # A bare name is left to the dynamic linker, which has to be asked by loading it: look instead.
    linked = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    folders = [*linked, *(Path("/") / folder for folder in _LINKER_FOLDERS)]
    seen = [str(path) for folder in folders for path in sorted(folder.glob("libcupti.so.1[2-9]*"))]
    return list(dict.fromkeys([*(p for p in candidates() if "/" in p), *seen]))


def _main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 - the interpreter is the user's choice
        sys.exit(f"Python {platform.python_version()} is older than 3.10")
    own = Path(__file__).resolve().parent
    here = own.parent
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != own]
    # As children/boot.py does it: this package alone, nothing else from beside it.
    spec = importlib.util.spec_from_file_location(
        "llmprof", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no llmprof package at {here}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["llmprof"] = module
    spec.loader.exec_module(module)
    print(json.dumps(look(sys.argv[1:])))


if __name__ == "__main__":
    _main()
