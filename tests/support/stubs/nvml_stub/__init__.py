"""A scripted ``libnvidia-ml.so.1`` for tests on machines without a GPU.

    env = nvml_stub.environment(nvml_stub.build(tmp_path), tmp_path, nvml_stub.H100)
    subprocess.run([...], env=env)

Scenario: one setting a line, ``KEY VALUE…`` for the driver or ``gpu N KEY VALUE…`` for a device;
``#`` starts a comment line. What a scenario does not set is refused with "Not Supported". A series
of numbers gives one value a call, the last one again and again.

- driver: ``driver`` and ``nvml`` (texts), ``cuda`` (13000 is 13.0)
- texts of a device: ``name``, ``uuid``, ``pci``
- facts: ``memory_total_mib``, ``bus_width``, ``max_sm_clock``, ``max_mem_clock``, ``power_limit``
  (mW), ``sm_count``, ``cores``, ``compute_capability`` (two numbers), ``mig`` (1 is on)
- series: ``sm_clock``, ``mem_clock``, ``gpu_util``, ``mem_util``, ``power`` (mW), ``temperature``,
  ``reasons`` (mask, ``0x`` allowed), ``memory_used_mib``, ``energy`` (mJ)
- ``process PID…``: what computes on a device
- GPM: ``gpm_dram_bw``, ``gpm_sm_util``, ``gpm_sm_occupancy`` (series of %, one value a pair of
  samples; without the first the device has no GPM); a pair closer than ``gpm_refresh_ms`` (100)
  gives NaN and zeros, as the driver does
- ``fail FUNCTION CODE [N]``: the function answers with that nvmlReturn_t, after N good calls
- ``lost_after N``: every call says "GPU is lost" after N reads of the power (N samples)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

H100 = """\
driver 580.159.04
nvml 13.580.159.04
cuda 13000
gpu 0 name NVIDIA H100 80GB HBM3
gpu 0 uuid GPU-11111111-aaaa-bbbb-cccc-000000000000
gpu 0 pci 00000000:04:00.0
gpu 0 memory_total_mib 81559
gpu 0 memory_used_mib 5000
gpu 0 bus_width 5120
gpu 0 max_sm_clock 1980
gpu 0 max_mem_clock 2619
gpu 0 power_limit 700000
gpu 0 compute_capability 9 0
gpu 0 mig 0
gpu 0 sm_clock 1980
gpu 0 mem_clock 2619
gpu 0 gpu_util 97
gpu 0 mem_util 31
gpu 0 power 431250
gpu 0 temperature 58
gpu 0 reasons 0
gpu 0 energy 1000000 1250000
gpu 0 gpm_dram_bw 31.5
gpu 0 gpm_sm_util 88
gpu 0 gpm_sm_occupancy 24
"""


def build(folder: Path) -> Path:
    """Compile the stub; the folder that holds ``libnvidia-ml.so.1``. Skips without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the NVML stub")
    library = folder / "nvml" / "libnvidia-ml.so.1"
    library.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / "nvml_stub.c"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source), "-lpthread"], check=True)
    return library.parent


def environment(library: Path, folder: Path, scenario: str, **extra: str) -> dict[str, str]:
    """An environment in which pynvml loads the stub with this scenario.

    The counts of calls are written to ``folder/calls`` (``calls_of``).
    """
    script = folder / "scenario"
    script.write_text(scenario)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_")}
    paths = [str(library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **kept,
        "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "NVML_STUB_SCENARIO": str(script),
        "NVML_STUB_CALLS": str(folder / "calls"),
        **extra,
    }


def calls_of(folder: Path) -> dict[str, int]:
    """How often each NVML function was called, as of the last ``nvmlShutdown``."""
    lines = (folder / "calls").read_text().splitlines()
    return {name: int(count) for name, count in (line.split() for line in lines)}
