"""How often the screen is drawn, and what Textual is told of it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

LOCAL_HZ = 4.0
REMOTE_HZ = 2.0


def refresh_rate(environ: Mapping[str, str]) -> float:
    """Frames a second: fewer over SSH, where each costs bytes."""
    return REMOTE_HZ if environ.get("SSH_CONNECTION") else LOCAL_HZ


def prepare(environ: MutableMapping[str, str]) -> None:
    """Make Textual frugal over SSH. It reads these when imported, so this comes first."""
    if environ.get("SSH_CONNECTION"):
        environ.setdefault("TEXTUAL_FPS", "12")
        environ.setdefault("TEXTUAL_ANIMATIONS", "none")
        environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")
