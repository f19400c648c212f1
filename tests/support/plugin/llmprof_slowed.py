"""The torch engine made slower by a known share: what a regression looks like."""

from __future__ import annotations

import time
from dataclasses import replace

from llmprof.engines.torch.engine import TorchEngine
from llmprof_fakes import spin


class SlowedTorch(TorchEngine):
    """``slow_pct``: per cent of each step's own time, added by busy waiting."""

    def load(self, request, progress):
        options = dict(request.options)
        self.extra = float(options.pop("slow_pct", "0")) / 100
        super().load(replace(request, options=options), progress)

    def decode_step(self):
        begin = time.perf_counter()
        row = super().decode_step()
        spin((time.perf_counter() - begin) * self.extra)
        return row
