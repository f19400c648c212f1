"""What a curve says as a line: the cost of a position, of a sequence, of a byte.

Every fit has its residuals and, from four places on, an interval (Student's t on ordinary least
squares); fewer than three places get none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from llmprof.analysis.timing.t_quantiles import student_t_quantile
from llmprof.records import Maybe, Unavailable
from llmprof.sweep.curves import Curve

LEAST = 3
KNEE_LOSS = 0.2
"""The knee is the last batch at which a sequence has lost no more than this of its rate."""
EXPLAINS, STRAIGHT = 0.5, 0.9
"""R² below which a line says nothing about bytes or bandwidth; of three places."""


@dataclass(frozen=True)
class Line:
    """``y = a + b·x`` by least squares."""

    a: float
    b: float
    b_low: Maybe
    b_high: Maybe
    """95 %."""
    residuals: tuple[float, ...]
    """y − fit, in the order of the places."""
    r2: float
    count: int
    mean: float
    """Of y."""

    @property
    def rises(self) -> bool:
        """Is the slope seen? Of three places, which have no interval, a nearly straight line."""
        if isinstance(self.b_low, Unavailable):
            return self.b > 0 and self.r2 >= STRAIGHT
        return self.b_low > 0 and self.r2 >= EXPLAINS

    @property
    def worst(self) -> float:
        return max(abs(r) for r in self.residuals)


@dataclass(frozen=True)
class ContextFit:
    """A step over the context: what a KV position costs, and what that says of bytes."""

    line: Line
    """ms over positions; ``line.b`` is ms a position."""
    fitted_bytes_per_position: Maybe
    """``b`` × the bandwidth at which the weights are read, per sequence: if reading K and V were
    as fast as reading the weights, a position would have so many bytes."""
    model_bytes_per_position: Maybe
    """What the engine says: ``kv_bytes_per_token``."""
    measured_bytes_per_position: Maybe
    """From measured GB/s and the time of a step: slope of the bytes that DRAM moved."""
    attention_gb_s: Maybe
    """Model bytes / fitted time a position: how fast K and V were read."""


@dataclass(frozen=True)
class Knee:
    """Where more sequences stop to pay."""

    batch: float
    """The largest one up to which a sequence keeps ``1 − KNEE_LOSS`` of the rate that it has at the
    smallest; ``inf``: every batch of the sweep does."""
    words: str


def line_of(xs: Sequence[float], ys: Sequence[float]) -> Line | Unavailable:
    """Least squares through at least three different places."""
    n = len(xs)
    if len(set(xs)) < LEAST:
        return Unavailable(f"a line needs {LEAST} places, there are {len(set(xs))}")
    mx, my = sum(xs) / n, sum(ys) / n
    sxx = sum((x - mx) ** 2 for x in xs)
    b = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sxx
    a = my - b * mx
    residuals = tuple(y - a - b * x for x, y in zip(xs, ys, strict=True))
    rest, total = sum(r * r for r in residuals), sum((y - my) ** 2 for y in ys)
    low: Maybe = Unavailable("three places leave no room for an interval")
    high = low
    if n > LEAST:
        half = student_t_quantile(0.975, n - 2) * math.sqrt(rest / (n - 2) / sxx)
        low, high = b - half, b + half
    return Line(a, b, low, high, residuals, 1 - rest / total if total else 1.0, n, my)


def context_fit(curve: Curve) -> ContextFit | Unavailable:
    """Of a curve over the context.

    A step at context c attends to c + (N + 1)/2 positions in the mean of N decode steps.
    """
    places = [p for p in curve.places if p.value("step_ms") is not None]
    if not places:
        return Unavailable("no place has a step time")
    xs = [p.x + (p.rows[0]["decode_len"] + 1) / 2 for p in places]
    ys = [float(p.value("step_ms") or 0) for p in places]
    line = line_of(xs, ys)
    if isinstance(line, Unavailable):
        return line
    batch = median(p.rows[0]["batch"] for p in places)
    model = places[0].value("kv_bytes_per_token")
    weights = places[0].value("weight_bytes_per_step")
    said: Maybe = Unavailable("the engine does not say its KV bytes") if model is None else model
    flat = Unavailable("the step is not seen to grow with the context")
    if not line.rises:
        return ContextFit(line, flat, said, _measured(curve, batch), flat)
    fitted: Maybe = Unavailable("the engine does not say the bytes of its weights")
    if weights and line.a > 0:
        fitted = line.b / line.a * weights / batch
    speed: Maybe = Unavailable("the engine does not say its KV bytes")
    if model:
        speed = model * batch / (line.b / 1e3) / 1e9
    return ContextFit(line, fitted, said, _measured(curve, batch), speed)


def _measured(curve: Curve, batch: float) -> Maybe:
    """Slope of the bytes that DRAM moved in a step, over the context, per sequence."""
    xs, ys = [], []
    for place in curve.places:
        rate, step = place.value("measured_gb_s"), place.value("step_ms")
        if rate is not None and step is not None:
            xs.append(place.x + (place.rows[0]["decode_len"] + 1) / 2)
            ys.append(rate * 1e9 * step / 1e3)
    if not xs:
        return Unavailable("DRAM was not measured")
    line = line_of(xs, ys)
    return line if isinstance(line, Unavailable) else line.b / batch


def knee_of(curve: Curve) -> Knee | Unavailable:
    """Of a curve over the batch: the last one up to which rate grows nearly with the batch."""
    places = [p for p in curve.places if p.value("tok_s") is not None]
    if len(places) < 2:
        return Unavailable(f"a knee needs 2 batches, there are {len(places)}")
    first = places[0]
    base = float(first.value("tok_s") or 0) / first.x
    knee = first
    for place in places[1:]:
        if float(place.value("tok_s") or 0) / place.x < (1 - KNEE_LOSS) * base:
            share = float(place.value("tok_s") or 0) / place.x / base
            return Knee(
                knee.x,
                f"up to batch {knee.shown} a sequence keeps {1 - KNEE_LOSS:.0%} of its rate; at"
                f" {place.shown} it has {share:.0%}",
            )
        knee = place
    return Knee(
        math.inf,
        f"no knee up to batch {knee.shown}: a sequence keeps {1 - KNEE_LOSS:.0%} of its rate",
    )


def bytes_line(found: Sequence[Curve]) -> Line | Unavailable:
    """Step time over modelled bytes a step, of all places of one engine and hardware.

    ``1 / b`` is the bandwidth at which the next byte comes, ``a`` the time that no byte explains.
    """
    xs, ys = [], []
    for curve in found:
        for place in curve.places:
            size, step = place.value("bytes_per_step"), place.value("step_ms")
            if size and step:
                xs.append(size / 1e9)
                ys.append(step)
    return line_of(xs, ys) if xs else Unavailable("no engine says how many bytes a step reads")


def fit_words(found: Sequence[Curve], axis: str) -> list[str]:
    """Every fit of the curves in words."""
    lines = []
    for curve in found:
        if axis == "context":
            fit = context_fit(curve)
            lines.append(f"{curve.label}: {_context_words(fit)}")
        elif axis == "batch":
            knee = knee_of(curve)
            text = f"n/a ({knee.reason})" if isinstance(knee, Unavailable) else knee.words
            lines.append(f"{curve.label}: {text}")
    by_engine: dict[tuple[str, str], list[Curve]] = {}
    for curve in found:
        by_engine.setdefault((curve.engine, curve.hardware), []).append(curve)
    for (engine, _), group in by_engine.items():
        line = bytes_line(group)
        if isinstance(line, Unavailable):
            lines.append(f"{engine}, bytes: n/a ({line.reason})")
        elif line.rises and line.a > -line.mean:
            lines.append(
                f"{engine}, bytes: step = {line.a:.3g} ms + bytes / {1e3 / line.b:,.0f} GB/s"
                f" (modelled bytes, {line.count} places, R² {line.r2:.3f}, worst residual"
                f" {line.worst:.2g} ms)"
            )
        else:
            lines.append(
                f"{engine}, bytes: modelled bytes do not explain the step (R² {line.r2:.3f},"
                f" {line.count} places)"
            )
    return lines


def _ns(ms: float) -> str:
    """Three digits and no exponent."""
    ns = ms * 1e6
    return f"{ns:,.0f}".replace("-", "−") if abs(ns) >= 100 else f"{ns:.3g}".replace("-", "−")


def _context_words(fit: ContextFit | Unavailable) -> str:
    if isinstance(fit, Unavailable):
        return f"n/a ({fit.reason})"
    line = fit.line
    bounds = ""
    if not isinstance(line.b_low, Unavailable) and not isinstance(line.b_high, Unavailable):
        slope = "slope " if line.b < 0 else ""  # its interval has a sign of its own
        bounds = f" ({slope}{_ns(line.b_low)} to {_ns(line.b_high)})"
    text = (
        f"step = {line.a:.3g} ms {'−' if line.b < 0 else '+'} {_ns(abs(line.b))}{bounds} ns ×"
        f" positions, R² {line.r2:.3f},"
        f" worst residual {line.worst:.2g} ms"
    )
    if not line.rises:
        return f"{text}: the step is not seen to grow with the context"
    if not isinstance(fit.model_bytes_per_position, Unavailable):
        text += f"; KV bytes a token: model {fit.model_bytes_per_position:,.0f}"
        for word, value in (
            ("measured", fit.measured_bytes_per_position),
            ("if read as fast as the weights", fit.fitted_bytes_per_position),
        ):
            if not isinstance(value, Unavailable):
                text += f", {word} {value:,.0f}"
        if not isinstance(fit.attention_gb_s, Unavailable):
            digits = 0 if fit.attention_gb_s >= 10 else 2
            text += f"; K and V read at {fit.attention_gb_s:,.{digits}f} GB/s"
    return text
