"""The lines of the view, from one status to the next: no Textual here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from llmprof.plaintext import one_line
from llmprof.records import GpuSample
from llmprof.tui.drawing.cells import Row, Span, fit, fit_label, row, spread
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import plain
from llmprof.tui.drawing.palette import accent

HISTORY = 60
"""Seconds of a lane's kernels/s."""
LABEL = 28
MOST_LANES = 16
OTHER_LINES = 6
"""The heading, how many processes there are more, the sum, and some of the program's output."""


class Lane(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def kernels(self) -> int: ...
    @property
    def ranges(self) -> int: ...


class Status(Protocol):
    """``recording.status.Status``."""

    @property
    def seconds(self) -> float: ...
    @property
    def kernels(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def window_open(self) -> bool: ...
    @property
    def lanes(self) -> Sequence[Lane]: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def samples(self) -> Sequence[GpuSample]: ...
    @property
    def said(self) -> Sequence[str]: ...


class Rates:
    """Counts a second, by name, one point a second."""

    def __init__(self) -> None:
        self._points: dict[str, deque[float]] = {}
        self._last: dict[str, int] = {}
        self._at: float | None = None

    def take(self, counts: dict[str, int], now: float) -> None:
        if self._at is not None and now - self._at < 1.0:
            return
        passed = now - self._at if self._at is not None else None
        self._at = now
        for name, count in counts.items():
            if passed is not None:
                rate = (count - self._last.get(name, 0)) / passed
                self._points.setdefault(name, deque(maxlen=HISTORY)).append(rate)
            self._last[name] = count

    def of(self, name: str) -> Sequence[float]:
        return self._points.get(name, ())

    def last(self, name: str) -> str:
        points = self.of(name)
        if not points:
            return "–"
        return plain(points[-1]) if points[-1] else "0"


class LiveLines:
    """Keeps what the last minute needs."""

    def __init__(self, glyphs: Glyphs, command: str, output: str) -> None:
        self._glyphs = glyphs
        self._command = one_line(command, 60)
        self._output = one_line(output, 60)
        self._rates = Rates()

    def header(self, status: Status | None, width: int) -> list[Row]:
        """What is recorded, into which file, for how long; whether it is just now."""
        left = row(Span("llmprof", "bright"), Span(f"  {self._command}", "strong"))
        if status is None:
            return [spread(left, row(Span("starting", "dim")), width), ()]
        glyph = self._glyphs.running if status.window_open else self._glyphs.paused
        state = "recording" if status.window_open else "not recording"
        minutes, seconds = divmod(int(status.seconds), 60)
        right = row(
            Span(f"{minutes}:{seconds:02}", "dim"),
            Span(f"   {glyph} {state}", "good" if status.window_open else "warn"),
        )
        return [spread(left, right, width), fit(row(Span(f"to {self._output}", "dim")), width)]

    def body(
        self, status: Status | None, width: int, now: float | None = None, height: int = 100
    ) -> list[Row]:
        """A line a process, a line a GPU, and what the recording has to say.

        Of more processes than there is room for those that launched the most are shown.
        """
        if status is None:
            return []
        counts = {"": status.kernels, "steps": status.steps}
        counts |= {f"lane {i}": lane.kernels for i, lane in enumerate(status.lanes)}
        self._rates.take(counts, time.monotonic() if now is None else now)
        name_width = max(12, min(LABEL, width - 50))
        head = f"  {'process':<{name_width}}{'kernels':>13}{'a second':>10}{'ranges':>11}"
        found = [fit(row(Span(head, "dim"), Span("  last minute", "dim")), width)]
        room = max(0, width - name_width - 38)
        others = len(status.samples) + len(status.said) + OTHER_LINES
        shown = _busiest(status.lanes, min(MOST_LANES, max(1, height - others)))
        for i in shown:
            lane = status.lanes[i]
            name = fit_label(one_line(lane.label, LABEL), name_width)
            counted = f"{lane.kernels:>13,}{self._rates.last(f'lane {i}'):>10}{lane.ranges:>11,}"
            bars = self._bars(self._rates.of(f"lane {i}"), room)
            mark = Span(f"{self._glyphs.lane} ", accent(i))
            found.append(fit(row(mark, Span(name, f"{accent(i)} strong"), Span(counted),
                                 Span(f"  {bars}", "dim")), width))  # fmt: skip
        if len(status.lanes) > len(shown):
            more = f"  and {len(status.lanes) - len(shown)} processes more"
            found.append(row(Span(more, "dim")))
        if not status.lanes:
            found.append(row(Span("  no process has done anything on a GPU yet", "dim")))
        steps = f"{status.steps:,}, {self._rates.last('steps')} a second" if status.steps else "–"
        total = (
            f"  {status.kernels:,} kernels, {self._rates.last('')} a second · steps {steps}"
            f" · {status.bytes_read / 2**20:,.0f} MiB read"
        )
        found.append(fit(row(Span(total)), width))
        found += [fit(row(Span(_gpu(sample), "dim")), width) for sample in status.samples]
        for text in status.said:
            found.append(fit(row(Span("! ", "warn"), Span(one_line(text, 200))), width))
        return found

    def output(self, lines: Sequence[str], width: int) -> list[str]:
        return [self._text(one_line(line, width)) for line in lines]

    def _bars(self, points: Sequence[float], room: int) -> str:
        last = list(points)[-room:]
        top = max(last, default=0.0)
        levels = self._glyphs.bars
        if top <= 0:
            return ""
        return "".join(levels[round(max(0.0, p) / top * (len(levels) - 1))] for p in last)

    def _text(self, line: str) -> str:
        return self._glyphs.text(line)


def _busiest(lanes: Sequence[Lane], count: int) -> list[int]:
    """Their places, in order."""
    by_work = sorted(range(len(lanes)), key=lambda i: -lanes[i].kernels)
    return sorted(by_work[:count])


def _gpu(sample: GpuSample) -> str:
    used = sample.memory_used_mib
    gib = None if used is None else used / 1024
    parts = [
        (sample.gpu_util_pct, "{:3.0f} % busy"),
        (sample.sm_clock_mhz, "{:5d} MHz"),
        (sample.power_w, "{:4.0f} W"),
        (sample.temperature_c, "{:3d} °C"),
        (gib, "{:5.1f} GiB"),
        (sample.gpm_dram_bw_pct, "DRAM {:3.0f} %"),
    ]
    shown = [text.format(value) for value, text in parts if value is not None]
    return f"  GPU {sample.device}  " + "  ".join(shown)
