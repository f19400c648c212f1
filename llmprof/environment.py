"""The conditions of a run: machine, driver, versions. Standard library at import, no GPU call.

Every value that could not be had is ``machine.unavailable(reason)``.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llmprof import __version__
from llmprof.machine import container, cpu, load_average, ram_mib, unavailable
from llmprof.plaintext import one_line
from llmprof.records import GpuDevice, Unavailable

VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that change what is measured; recorded where they are set."""


def collect(devices: Sequence[GpuDevice] | Unavailable) -> dict[str, Any]:
    """The environment block of a run, ready for JSON.

    Engine packages are not here: each worker reports its own.

    Args:
        devices: what NVML found, or why it found nothing.
    """
    return {
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hostname": one_line(platform.node()) or unavailable("the host has no name"),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "container": container(),
        "cpu": cpu(),
        "ram_mib": ram_mib(),
        "load_average": load_average(),
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "llmprof": {
            "version": __version__,
            "commit": tool_commit() or unavailable("not run from a git checkout"),
        },
        "variables": {k: one_line(os.environ[k]) for k in VARIABLES if k in os.environ},
        "driver": _driver(devices),
        "gpus": _gpus(devices),
    }


def tool_commit(package: Path = Path(__file__).parent) -> str | None:
    """Commit of the checkout that llmprof runs from, with ``-dirty`` when files were changed."""
    checkout = package.resolve().parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            cwd=checkout,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # reading must not touch the index
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    commit = done.stdout.strip()
    return (
        commit if done.returncode == 0 and re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit) else None
    )


def _gpus(devices: Sequence[GpuDevice] | Unavailable) -> Any:
    if isinstance(devices, Unavailable):
        return unavailable(devices.reason)
    silent = unavailable("NVML did not say; the reason is among the run's missing values")
    rows = []
    for device in devices:
        row = {**asdict(device), "peak_bandwidth_gb_s": device.peak_bandwidth_gb_s}
        rows.append({k: silent if v is None else v for k, v in row.items()})
    return rows


def _driver(devices: Sequence[GpuDevice] | Unavailable) -> dict[str, Any]:
    if isinstance(devices, Unavailable):
        return unavailable(devices.reason)
    from llmprof.tracers.nvml.fields import driver_versions

    versions = driver_versions()
    return unavailable(versions.reason) if isinstance(versions, Unavailable) else dict(versions)
