"""The torch engine made slower by a known share: what a regression looks like."""

from __future__ import annotations

import time
from dataclasses import replace

from llmprof.engines.torch.engine import TorchEngine


class SlowedTorch(TorchEngine):
    """``slow_pct``: per cent of each step's own time on its processor, added by computing nothing.

    Not of its wall time: beside other processes most of that is theirs, and 10 % of it were half of
    a step.
    """

    def load(self, request, progress):
        options = dict(request.options)
        self.extra = float(options.pop("slow_pct", "0")) / 100
        super().load(replace(request, options=options), progress)

    def decode_step(self):
        begin = time.thread_time()
        row = super().decode_step()
        now = time.thread_time()
        until = now + (now - begin) * self.extra
        while time.thread_time() < until:
            pass
        return row
