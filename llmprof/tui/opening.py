"""Reading a finished run for the screen: the steps at once, then the kernels, then what is too much
to be analysed. On a thread; the screen learns of it by messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from textual.message import Message

from llmprof.analysis.findings.ranked import Findings, find
from llmprof.analysis.view.frames.snapshot import SnapshotSource
from llmprof.analysis.view.traced import RunTrace
from llmprof.errors import LlmprofError
from llmprof.records import Unavailable

APART_S = 0.2
"""Between two messages about how far the reading is."""


@dataclass(frozen=True)
class Reading:
    """What is being read, and the share of it that is done."""

    what: str
    share: float | None
    """0–1; ``None``: unknown."""


class Stopped(Exception):
    """Nobody waits for the file any more."""


class TraceRead(Message):
    """There is more to be seen of the traced pass, or why there is nothing.

    ``reading`` says what is still being done; ``None``: nothing, that was all.
    """

    def __init__(
        self,
        trace: RunTrace | Unavailable | None,
        reading: Reading | None = None,
        findings: Findings | None = None,
    ) -> None:
        super().__init__()
        self.findings = findings
        """``None``: as before."""
        self.trace = trace
        """``None``: as before."""
        self.reading = reading


def read(
    source: SnapshotSource, post: Callable[[TraceRead], object], cancelled: Callable[[], bool]
) -> None:
    """Read everything, telling on the way.

    ``post`` is called from this thread. Ends soon after ``cancelled`` says so.
    """
    now = Reading("reading kernels", None)
    told_s = 0.0

    def tell(what: str, share: float | None) -> None:
        nonlocal now, told_s
        if cancelled():
            raise Stopped
        late = time.monotonic() >= told_s + APART_S
        if late or what != now.what:
            now, told_s = Reading(what, share), time.monotonic()
            post(TraceRead(None, now))

    try:
        outline = source.outline()
        if outline is not None:
            post(TraceRead(outline, now))
        trace = source.trace(tell)
        if isinstance(trace, RunTrace):
            for engine in trace.engines:
                tell(f"analysing {engine.label}", None)
                _ = engine.kernels  # kept by the engine, so that the first frame only draws
                tell(f"analysing {engine.label}", None)
                _ = engine.causes
            tell("laying out the timeline", None)
            trace.lanes.axis("step")
            _ = trace.falls
            post(TraceRead(trace, now))
            tell("looking for findings", None)
            post(TraceRead(None, now, find(trace)))
            told_s = time.monotonic()
            seen = time.monotonic()
            for _ in trace.refine(tell):
                if time.monotonic() > seen + APART_S:
                    seen = time.monotonic()
                    post(TraceRead(trace, now))
    except Stopped:
        return
    except LlmprofError as why:
        trace = Unavailable(str(why))
    post(TraceRead(trace))
