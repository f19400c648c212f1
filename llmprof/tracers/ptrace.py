"""May py-spy, a child of llmprof, read a worker, another child of it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmprof.environment import ROOT, container_kind

CAP_SYS_PTRACE = 19  # linux/capability.h


@dataclass(frozen=True)
class Permission:
    """``fix`` is what to do where it is not allowed."""

    allowed: bool
    text: str
    fix: str = ""


def has_capability(bit: int, root: Path = ROOT) -> bool:
    """Is this Linux capability in the effective set of this process?"""
    try:
        status = (root / "proc/self/status").read_text()
    except OSError:
        return False
    lines = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")]
    return bool(lines) and bool(int(lines[0], 16) >> bit & 1)


def permission(root: Path = ROOT) -> Permission:
    """What the kernel's settings say; only an attempt proves it (seccomp filters cannot be read).

    Yama (kernel documentation, Yama.rst): 0 any process of the same user, 1 descendants only, 2
    with CAP_SYS_PTRACE, 3 nobody.
    """
    try:
        scope = int((root / "proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        scope = 0  # a kernel without Yama
    if scope == 3:
        text = "forbidden to everybody (yama ptrace_scope is 3): no host stacks from py-spy"
        return Permission(False, text, "set kernel.yama.ptrace_scope lower and reboot")
    if has_capability(CAP_SYS_PTRACE, root):
        return Permission(True, "py-spy may read a worker (CAP_SYS_PTRACE)")
    inside = container_kind(root)
    if scope == 0 and inside is None:
        return Permission(True, "py-spy may read a worker (ptrace_scope is 0)")
    if inside is not None:
        text = f"no CAP_SYS_PTRACE in this container ({inside}): no host stacks from py-spy"
        return Permission(False, text, "docker run --cap-add SYS_PTRACE")
    text = f"yama ptrace_scope is {scope}: py-spy may not read a worker without CAP_SYS_PTRACE"
    return Permission(False, text, "sudo sysctl kernel.yama.ptrace_scope=0, or run as root")


def why_denied(root: Path = ROOT) -> str:
    """The reason for a refusal that was met, with what to do about it."""
    found = permission(root)
    if found.allowed:
        return (
            "reading the worker was denied though the kernel's settings allow it: a seccomp filter,"
            " another user's process, or one that is not dumpable; in a container add"
            " --cap-add SYS_PTRACE, elsewhere run as root"
        )
    return f"{found.text}; {found.fix}"
