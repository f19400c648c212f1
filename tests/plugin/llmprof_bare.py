"""The torch engine, timed by a bare loop every other round: what the harness must not exceed.

In a round whose number is even (the engine counts them) ``prefill`` also runs the decode loop, with
two clock reads around the whole of it, and writes the time to ``out``; the harness' own steps of
that round then return at once. In an odd round everything is left to the harness.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from llmprof.engines.torch_engine import TorchEngine


class BareLoop(TorchEngine):
    def load(self, request, progress):
        options = dict(request.options)
        self.out = Path(options.pop("out"))
        self.steps = int(options.pop("steps"))
        self.rounds = 0
        super().load(replace(request, options=options), progress)

    def prefill(self, prompt_ids):
        self.idle = None
        first = super().prefill(prompt_ids)
        self.rounds += 1
        if self.rounds % 2 == 0:
            step = super().decode_step
            begin = time.monotonic_ns()
            for _ in range(self.steps):
                row = step()
            self.out.write_text(str(time.monotonic_ns() - begin))
            self.idle = row
        return first

    def decode_step(self):
        return super().decode_step() if self.idle is None else self.idle
