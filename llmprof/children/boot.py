"""First file that a child process runs: ``PYTHON boot.py READ_FD WRITE_FD [MODULE]``.

``MODULE.serve(read_fd, write_fd)`` is what it does: ``llmprof.worker.main`` unless told otherwise.

The interpreter may belong to an engine's own environment, where llmprof is not installed. Only the
package ``llmprof`` is made importable from here; putting its parent folder on ``sys.path`` would
leak every package of llmprof's own environment into the engine's.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """A parent that is killed -9 must not leave a worker holding the GPU."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1 and "LLMPROF_PARENT" in os.environ:
        alive = Path(f"/proc/{os.environ['LLMPROF_PARENT']}").exists()
        if not alive:  # the parent died before prctl
            os.kill(os.getpid(), signal.SIGKILL)


def _import_package() -> None:
    package = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "llmprof", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no llmprof package at {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["llmprof"] = module
    spec.loader.exec_module(module)


def call(module: str, function: str, *arguments: Any) -> None:
    """``module.function(*arguments)`` in a process that multiprocessing spawned from one that runs
    this file: there this file is the main module, and ``llmprof`` is not importable yet."""
    if "llmprof" not in sys.modules:
        _import_package()
    getattr(importlib.import_module(module), function)(*arguments)


def main() -> None:
    die_with_parent()
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [p for p in sys.path if p != here]
    _import_package()
    module = sys.argv[3] if len(sys.argv) > 3 else "llmprof.worker.main"
    importlib.import_module(module).serve(int(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
