"""Builds a stub libcupti, its companions and libcuda into one folder, as a toolkit has them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def build(folder: Path) -> str:
    """Path of the stub libcupti; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    for source, name in (("cupti_stub.c", "libcupti.so.13"), ("cuda_stub.c", "libcuda.so.1")):
        flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-O1"]
        output = ["-o", str(folder / name)]
        subprocess.run([compiler, *flags, *output, str(HERE / source)], check=True)
    for name in ("libnvperf_host.so", "libnvperf_target.so"):
        (folder / name).touch()
    return str(folder / "libcupti.so.13")
