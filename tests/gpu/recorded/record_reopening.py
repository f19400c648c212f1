"""``llmprof record`` whose window opens and closes again and again, as if ``w`` were pressed.

    python3 tests/gpu/recorded/record_reopening.py record … -- COMMAND

``REOPEN_S``: how long it is open, and how long closed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from llmprof.cli import main
from llmprof.recording.window import Window

PERIOD_NS = float(os.environ.get("REOPEN_S", "0.5")) * 1e9
_follow = Window.follow


def follow(self: Window, now_ns: int, started_ns: int, steps: int) -> None:
    _follow(self, now_ns, started_ns, steps)
    switched_ns = self.opened_ns if self.is_open else self.closed_ns
    if switched_ns is not None and now_ns - switched_ns >= PERIOD_NS:
        self.toggle(now_ns, steps)


Window.follow = follow  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
