"""Any engine, timed by a bare loop every other round: what the harness must not exceed.

``engine=NAME`` (torch where not said) is wrapped. In a round whose number is even (they are counted
here) ``prefill`` also runs the decode loop, with two clock reads around the whole of it, and writes
the time to ``out``; the harness' own steps of that round then return at once. In an odd round
everything is left to the harness.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from llmprof.engines.registry import create


class BareLoop:
    def load(self, request, progress):
        options = dict(request.options)
        self.out = Path(options.pop("out"))
        self.steps = int(options.pop("steps"))
        self.engine = create(options.pop("engine", "torch"))
        self.rounds = 0
        self.engine.load(replace(request, options=options), progress)

    def prefill(self, prompt_ids):
        self.idle = None
        step = self.step = self.engine.decode_step
        first = self.engine.prefill(prompt_ids)
        self.rounds += 1
        if self.rounds % 2 == 0:
            begin = time.monotonic_ns()
            for _ in range(self.steps):
                row = step()
            self.out.write_text(str(time.monotonic_ns() - begin))
            self.idle = row
        return first

    def decode_step(self):
        return self.step() if self.idle is None else self.idle

    def finish_round(self):
        return self.engine.finish_round()

    def reset(self):
        self.engine.reset()

    def close(self):
        self.engine.close()

    def describe(self):
        return self.engine.describe()
