"""Files that take long to make, once for all processes of one run of the tests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

FOLDER = "LLMPROF_TESTS_MADE"
"""Variable with a folder that lasts as long as the run of the tests; without it nothing is kept."""


def made_once(what: str, path: Path, make: Callable[[Path], object]) -> Path:
    """``path``, made by ``make(path)`` or copied from what was made for the same ``what``."""
    folder = os.environ.get(FOLDER)
    if not folder:
        make(path)
        return path
    kept = Path(folder) / f"{hashlib.sha256(what.encode()).hexdigest()[:24]}{path.suffix}"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            part = kept.with_suffix(f".part{path.suffix}")
            make(part)
            part.rename(kept)
    shutil.copyfile(kept, path)
    return path
