"""Free memory of the host. Standard library only."""

from __future__ import annotations

from pathlib import Path

MIB = 1 << 20
_CGROUP = Path("/sys/fs/cgroup")


def host_free_bytes() -> int | None:
    """What Linux and the container's limit leave, bytes; ``None`` where neither says."""
    found = [value for value in (_available(), _container()) if value is not None]
    return min(found, default=None)


def free_text(free: int | None) -> str:
    """``; 1234 MiB are free``, or nothing where it is not known."""
    return "" if free is None else f"; {free // MIB} MiB are free"


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container() -> int | None:
    """What a cgroup v2 limit leaves; page cache is given back under pressure, so it is free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = int(dict(line.split() for line in lines).get("file", "0"))
        return None if limit == "max" else max(0, int(limit) - used + cached)
    except (OSError, ValueError):
        return None
