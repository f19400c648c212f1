"""One line a check, on stdout."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

failed: list[str] = []


def say(ok: bool, text: str, detail: str = "") -> None:
    """One check. ``detail`` is shown where it failed."""
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)
    if not ok and detail:
        print("       " + detail.strip().replace("\n", "\n       ")[-2000:], flush=True)


def guarded(work: Callable[[], None], name: str) -> None:
    try:
        work()
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as why:
        say(False, f"{name}: {type(why).__name__}: {why}")
