"""One program at a time on the GPU, while others start or are being written down.

A program that takes its turn waits for the one before it, and keeps the GPU until it ends: a kernel
beside another one takes longer. Without ``RECORD_TURN``, a file to lock, nothing is waited for.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

_held: list[int] = []


def take() -> None:
    path = os.environ.get("RECORD_TURN")
    if path and not _held:
        _held.append(_locked(path))


@contextmanager
def alone(path: str) -> Iterator[None]:
    """Nobody has a turn meanwhile."""
    lock = _locked(path)
    try:
        yield
    finally:
        os.close(lock)


def _locked(path: str) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
