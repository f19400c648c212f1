"""The machine as the kernel's files describe it: cores, quota, memory, container. Standard library.

Every value that could not be had is ``unavailable(reason)``: ``{"value": null, "reason": "…"}``.
What is read from files takes ``root``, so that another tree than ``/`` can be described.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
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
    limits = []
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
                limits.append(_quota(folder))
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


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
