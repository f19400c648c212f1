"""What the run file looks like: statements of ``schema.sql``, versions, identifiers."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Literal

SCHEMA_VERSION = 1
"""Of the LLMPROF_* tables; a reader refuses a newer one."""
NSYS_SCHEMA = (3, 25, 0)
"""Export schema of Nsight Systems that the other tables follow (nsys 2026.2)."""

STEP_DOMAIN = "llmprof"
"""NVTX domain of the ranges ``round N``, ``prefill``, ``decode N``."""
OP_DOMAIN = "torch"
"""NVTX domain of the operators that an engine's operator tracer recorded."""
PYTHON_DOMAIN = "python"
"""NVTX domain of Python functions that torch.profiler recorded."""
GPU_DOMAIN = "gpu"
"""NVTX domain of ranges as torch.profiler drew them over a stream's kernels."""
HOST_DOMAINS = (OP_DOMAIN, PYTHON_DOMAIN)
"""Where ranges are what the host does, call by call: many, and never the steps."""

PUSH_POP, DOMAIN_CREATE = 59, 75
"""``NVTX_EVENTS.eventType``, from ENUM_NSYS_EVENT_TYPE."""

PM_ROUNDS = 1 << 40
"""``LLMPROF_PM_ROUND.round_id`` of a recorded program: this, plus ``PM_STRETCH`` for each stretch
of sampling before, plus the GPU's number. It has no rounds when it is recorded; those of pass
``sampled`` are made when the file is read."""
PM_STRETCH = 1 << 20

PM_FURTHER = 1 << 41
"""From here on: the further GPUs of sampled rounds (``pm_round``)."""

HOST_ROUNDS = 1 << 20
"""``LLMPROF_HOST_ROUND.round_id`` of a recorded program: this once for each stretch of sampling so
far, plus the engine's number."""

VM = 1 << 48
"""nsys serialises ids as hardware << 56 | vm << 48 | pid << 24 | tid; real files have vm 1."""

BulkTable = Literal[
    "CUPTI_ACTIVITY_KIND_KERNEL",
    "CUPTI_ACTIVITY_KIND_RUNTIME",
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    "CUPTI_ACTIVITY_KIND_MEMSET",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION",
    "PROFILER_OVERHEAD",
    "TARGET_INFO_CUDA_CONTEXT_INFO",
    "TARGET_INFO_CUDA_STREAM",
    "LLMPROF_PM_SAMPLE",
    "COMPOSITE_EVENTS",
    "SAMPLING_CALLCHAINS",
]

_ALWAYS = {
    "StringIds",
    "META_DATA_EXPORT",
    "META_DATA_CAPTURE",
    "TARGET_INFO_SESSION_START_TIME",
    "ANALYSIS_DETAILS",
    "PROCESSES",
    "ThreadNames",
}


@cache
def statements() -> dict[str, tuple[str, ...]]:
    """Table → the statements that create it (an ENUM_* table comes with its rows)."""
    text = files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
    text = re.sub(r"^--.*\n", "", text, flags=re.MULTILINE)
    found: dict[str, tuple[str, ...]] = {}
    for statement in re.split(r";\n", text):
        if match := re.match(r"\s*(?:CREATE TABLE|INSERT INTO) (\w+)", statement):
            found[match[1]] = (*found.get(match[1], ()), statement.strip())
    return found


def always_present() -> list[str]:
    """Tables that every run file has, rows or not; the others come with their first row."""
    return [t for t in statements() if t in _ALWAYS or t.startswith(("ENUM_", "LLMPROF_"))]


def global_tid(pid: int, tid: int) -> int:
    """nsys' ``globalTid``: without the vm bits, kernel ↔ API ↔ NVTX joins silently find nothing.

    Args:
        pid: a process id, or a process number (``process_number``).

    Raises:
        ValueError: not a Linux process or thread id (they have at most 22 bits).
    """
    if not (0 <= pid < 1 << 39 and 0 <= tid < 1 << 24):
        raise ValueError(f"pid {pid}, tid {tid}: not a process and a thread id")
    return (pid << 24 if pid >> 24 else VM | pid << 24) | tid


def global_pid(pid: int) -> int:
    """nsys' ``globalPid``: a ``globalTid`` with thread 0."""
    return global_tid(pid, 0)


def pm_round(round_id: int, device: int, primary: int) -> int:
    """``LLMPROF_PM_ROUND.round_id`` of one GPU of a round of pass ``sampled``: that of the engine's
    primary GPU is the round's own. Of a recording each GPU of a stretch has its own number."""
    if PM_ROUNDS <= round_id < PM_FURTHER:
        return round_id - (round_id - PM_ROUNDS) % PM_STRETCH + device
    return round_id if device == primary else PM_FURTHER + (round_id << 8) + device


def process_number(pid: int, image: int) -> int:
    """``globalPid >> 24`` of the ``image``-th process (from 0) that had this id in one recording.

    A program may replace itself (exec), and ids come again: each image has a vm number of its own.

    Raises:
        ValueError: no process id, or more images than the number has room for.
    """
    if not (0 <= pid < 1 << 24 and 0 <= image < (1 << 15) - 1):
        raise ValueError(f"pid {pid}, image {image}: not a process")
    return (VM >> 24) * (1 + image) | pid
