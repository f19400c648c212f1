"""What the process of one point runs: the command line of llmprof, in its own interpreter.

Started by ``children/boot.py``, so that it ends with the sweep, however that ends.
"""

from __future__ import annotations

import runpy
import sys


def serve(read_fd: int, write_fd: int) -> None:
    """``sys.argv`` is boot's, then the arguments of ``llmprof``; the descriptors are not used."""
    sys.argv = ["llmprof", *sys.argv[4:]]
    runpy.run_module("llmprof", run_name="__main__")
