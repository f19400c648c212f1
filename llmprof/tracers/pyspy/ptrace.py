"""May py-spy, a child of llmprof, read a worker, another child of it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmprof.machine import ROOT, container_kind

CAP_SYS_PTRACE = 19  # linux/capability.h


@dataclass(frozen=True)
class Permission:
    """``fix`` is what to do where it is not allowed."""

    allowed: bool
    text: str
    fix: str = ""


def has_capability(bit: int, root: Path = ROOT) -> bool:
    """Is this Linux capability in the effective set of this process?"""
    return bool(int(_status(root, "CapEff") or "0", 16) >> bit & 1)


def permission(root: Path = ROOT) -> Permission:
    """What the kernel's settings say; only an attempt proves it (seccomp filters cannot be read).

    Yama (kernel documentation, Yama.rst): 0 any process of the same user; 1 descendants, and whom
    the process names, which a worker does (``worker.metronome.let_read``); 2 with CAP_SYS_PTRACE;
    3 nobody. A container needs no capability for a process of the same user.
    """
    scope = _scope(root)
    if scope == 3:
        text = "forbidden to everybody (kernel.yama.ptrace_scope is 3): no host stacks from py-spy"
        return Permission(False, text, "set kernel.yama.ptrace_scope lower and reboot")
    if has_capability(CAP_SYS_PTRACE, root):
        return Permission(True, "py-spy may read a worker (CAP_SYS_PTRACE)")
    if scope != 2:
        why = "a kernel without Yama" if scope is None else f"yama ptrace_scope is {scope}"
        return Permission(True, f"py-spy may read a worker of the same user ({why})")
    text = "kernel.yama.ptrace_scope is 2: py-spy may not read a worker without CAP_SYS_PTRACE"
    fix = "sudo sysctl kernel.yama.ptrace_scope=1, or run as root"
    if container_kind(root) is not None:
        fix = (
            "on the host sudo sysctl kernel.yama.ptrace_scope=1, or run llmprof as the container's"
            " root with --cap-add SYS_PTRACE"
        )
    return Permission(False, text, fix)


def why_denied(root: Path = ROOT) -> str:
    """The reason for a refusal that was met, with what to do about it."""
    found = permission(root)
    if not found.allowed:
        return f"{found.text}; {found.fix}"
    likely = "another user's process, or one that is not dumpable"
    return (
        "reading the worker was denied though the kernel's settings allow it:"
        f" {_filter(root)}{likely}; in a container add --cap-add SYS_PTRACE, elsewhere run as root"
    )


def why_not_stopped(root: Path = ROOT) -> str:
    """The reason where a worker could be read and not be stopped."""
    return (
        f"the worker may be read but not stopped ({_filter(root)}another tracer); leave out"
        " --host-blocking and --host-native, or in a container add --cap-add SYS_PTRACE"
    )


def _filter(root: Path) -> str:
    on = _status(root, "Seccomp") == "2"  # SECCOMP_MODE_FILTER, linux/seccomp.h
    return "a seccomp filter (one is on), " if on else ""


def _scope(root: Path) -> int | None:
    """Yama's ptrace_scope; ``None``: a kernel without Yama, or it cannot be read."""
    try:
        return int((root / "proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return None


def _status(root: Path, field: str) -> str:
    """A field of /proc/self/status (proc(5)); empty where it is not there."""
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split()[1] for line in lines if line.startswith(f"{field}:")), "")
