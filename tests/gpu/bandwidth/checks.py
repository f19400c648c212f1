"""What the parts of run_bandwidth.py share: checks, told one a line."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
AIM, NCU_AIM = 0.015, 0.05
failed: list[str] = []


def say(ok: bool, text: str) -> None:
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


def summed(label: str, fitted_gb_s: float, sampled_gb_s: float) -> None:
    """Do kernels and idle time add up to the samples?"""
    off = abs(fitted_gb_s / sampled_gb_s - 1)
    say(off <= 0.01, f"{label}: sum over kernels against the samples: {off:.3%}")


def guarded(label: str, work: Callable[[Path], None], folder: Path) -> None:
    """One part: the others run though it fails."""
    begin = time.monotonic()
    try:
        work(folder)
    except Exception as why:  # noqa: BLE001 - the next part is still worth a try
        traceback.print_exc()
        say(False, f"{label}: {type(why).__name__}: {str(why)[:300]}")
    print(f"({label}: {time.monotonic() - begin:.0f} s)\n", flush=True)
