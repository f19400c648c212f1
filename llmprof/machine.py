"""The machine as the kernel's files describe it: cores, quota, memory, container. Standard library.

Every value that could not be had is ``unavailable(reason)``: ``{"value": null, "reason": "…"}``.
What is read from files takes ``root``, so that another tree than ``/`` can be described.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmprof.plaintext import one_line

ROOT = Path("/")


def unavailable(reason: str) -> dict[str, Any]:
    """The one form of a value that could not be had."""
    return {"value": None, "reason": reason}


def cpu(root: Path = ROOT) -> dict[str, Any]:
    """Model, core counts, and how many cores this process may use.

    ``usable_cores`` is the smaller of the affinity mask and the cgroup's CPU quota, so it may be a
    fraction; ``quota_cores`` is ``None`` where there is no quota.
    """
    allowed = sorted(os.sched_getaffinity(0))
    quota = quota_cores(root)
    return {
        "model": _cpu_model(root),
        "physical_cores": _physical_cores(root),
        "logical_cores": os.cpu_count() or unavailable("the system does not say"),
        "affinity_cores": len(allowed),
        "quota_cores": quota,
        "usable_cores": len(allowed) if quota is None else min(len(allowed), quota),
        "governor": _governor(root, allowed),
    }


def quota_cores(root: Path = ROOT) -> float | None:
    """The tightest CPU quota of this process's cgroup and its parents, in cores.

    cgroup v2: ``cpu.max`` is ``QUOTA PERIOD`` or ``max PERIOD``; v1: ``cpu.cfs_quota_us`` (-1 is
    none) over ``cpu.cfs_period_us`` (kernel documentation, cgroup-v2.rst and sched-bwc.rst).
    """
    limits = [_quota(folder) for folder in cpu_groups(root)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def cpu_groups(root: Path = ROOT) -> Iterator[Path]:
    """Folders of the CPU controller that may limit this process: its cgroup's and its parents'."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"] if controllers else []
        for mount in [*mounts, "sys/fs/cgroup", "sys/fs/cgroup/unified"]:
            # Inside a container the path is often the host's, and the mount is its own root.
            place = root / mount / path.lstrip("/")
            for folder in (place, *place.parents):
                if folder == root / "sys/fs":
                    break
                yield folder


def allowed_cores(root: Path = ROOT) -> int:
    """Cores, not hardware threads, among the CPUs that this process may run on."""
    base = root / "sys/devices/system/cpu"
    cpus = os.sched_getaffinity(0)
    return len({_text(base / f"cpu{n}/topology/thread_siblings_list").strip() or n for n in cpus})


def default_threads(root: Path = ROOT) -> int:
    """Threads that compute at once without waiting for a CPU: cores, as many as the quota feeds.

    Two threads on a quota of half a CPU are stopped in the middle of what the other waits for:
    llama.cpp decoded 3.5 tok/s with them and 27 with one.
    """
    quota = quota_cores(root)
    cores = allowed_cores(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def runnable(root: Path = ROOT) -> int | None:
    """Threads of the machine that run or wait for a CPU now, this one included: the median of five
    looks, 5 ms apart. ``None`` where the kernel does not say."""
    seen = []
    for look in range(5):
        time.sleep(0.005 if look else 0)
        found = re.search(r"^procs_running (\d+)", _text(root / "proc/stat"), re.MULTILINE)
        if not found:
            return None
        seen.append(int(found[1]))
    return sorted(seen)[2]


_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS")
_PATIENCE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def worker_variables(environ: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """Variables for the processes of engines, where the CPUs are not theirs alone.

    A pool's threads spin while they wait for each other. Where another process or a quota takes a
    CPU, they spin on the CPU that the last of them needs: torch decoded 2.2 and 24 tok/s,
    llama.cpp 9 and 83, spinning and sleeping, on two CPUs that six more processes wanted
    (``benchmarks/crowded_pools.py``). On CPUs
    of its own a pool is left alone, since waking takes it longer than spinning. What the user has
    set is left alone too.
    """
    threads, quota = default_threads(root), quota_cores(root)
    limited = quota is not None and quota < len(os.sched_getaffinity(0))
    busy = runnable(root)
    crowded = busy is not None and busy - 1 + threads > (os.cpu_count() or 1)
    found = {name: str(threads) for name in _THREADS} if limited else {}
    if (limited or crowded) and not _PATIENCE.keys() & environ.keys():
        found |= _PATIENCE
    return {name: value for name, value in found.items() if name not in environ}


def ram_mib(root: Path = ROOT) -> Any:
    """Memory of the machine, MiB."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) // 1024 if found else unavailable("/proc/meminfo has no MemTotal")


def container_kind(root: Path = ROOT) -> str | None:
    """``docker``, ``podman``, ``kubernetes``, ``lxc``, …; ``None`` where no sign of one is seen."""
    if (root / "var/run/secrets/kubernetes.io").exists():
        return "kubernetes"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    groups = _text(root / "proc/1/cgroup") + _text(root / "proc/self/cgroup")
    for word, kind in (("kubepods", "kubernetes"), ("docker", "docker"), ("lxc", "lxc")):
        if f"/{word}" in groups:
            return kind
    return None


def container(root: Path = ROOT) -> dict[str, Any]:
    """Which kind of container this is, as far as one can see from inside."""
    kind = container_kind(root)
    if kind is None:
        return {"kind": "none seen"}
    return {"kind": kind, "image_digest": unavailable("a container cannot see its image's digest")}


def load_average() -> Any:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError as why:
        return unavailable(f"no load average: {why}")


def _cpu_model(root: Path) -> Any:
    text = _text(root / "proc/cpuinfo")
    # x86 says "model name", some ARM boards "Model" or "Hardware", most ARM servers nothing.
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return one_line(found[1]) if found else unavailable("/proc/cpuinfo names no model")


def _physical_cores(root: Path) -> Any:
    """Distinct sets of hardware threads that share a core (sysfs CPU topology)."""
    lists = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    cores = {_text(path).strip() for path in lists}
    return len(cores - {""}) or unavailable("sysfs shows no CPU topology")


def _governor(root: Path, allowed: Sequence[int]) -> Any:
    base = root / "sys/devices/system/cpu"
    found = {_text(base / f"cpu{n}/cpufreq/scaling_governor").strip() for n in allowed} - {""}
    return ", ".join(sorted(found)) or unavailable("no cpufreq in sysfs (a virtual machine?)")


def _quota(folder: Path) -> float | None:
    v2 = _text(folder / "cpu.max").split()
    v1 = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    quota, period = v2 if len(v2) == 2 else v1
    # "max" and "-1" are no limit
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _text(path: Path) -> str:
    """Content of a small system file; empty where it is absent or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
