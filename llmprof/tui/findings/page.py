"""Verdict, where a step's time goes, and findings; the selected one with its evidence."""

from __future__ import annotations

from typing import Final

from llmprof.analysis.device.naming.categories import IDLE
from llmprof.analysis.findings.ranked import Findings, StepWords
from llmprof.analysis.findings.subject import Finding
from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import (
    Row,
    Span,
    clean,
    fit,
    fit_label,
    fit_text,
    row,
    rule,
    wrap,
)
from llmprof.tui.drawing.marks import category_letter, category_role
from llmprof.tui.findings.evidence import chosen
from llmprof.tui.view import View

_LABEL: Final = 14
_MS: Final = 10
_MOST_VERDICTS: Final = 3
_CONFIDENCE: Final = {"high": "good", "medium": "", "low": "warn"}


def page(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """Five lines say what matters; what they rest on follows for the line that is selected."""
    out = _verdicts(snapshot, width)
    found = view.findings
    if found is None:
        return [*out, *_not_yet(snapshot, view, width)]
    out += _steps(found, view, width)
    title = f"{len(found.found)} finding{'s' * (len(found.found) != 1)}, the most to be won first"
    note = row(Span("j k: choose · enter: its evidence", "dim"))
    out.append(rule(row(Span(title, "strong")), note, width, view.glyphs.track))
    if not found.found:
        out.append(_nothing(found))
    picked = chosen(view)
    for index, item in enumerate(found.found):
        out += _finding(index, item, item is picked, view, width)
    if found.dropped:
        out.append(row(Span(f"{found.dropped} smaller left out", "dim")))
    for engine, why in found.missing:
        text = f"{clean(engine)}: {clean(why)}"
        out += [row(Span(line, "dim")) for line in wrap(text, width)]
    return out


def _nothing(found: Findings) -> Row:
    if any(not isinstance(words.step_ms, Unavailable) for words in found.steps):
        return row(Span("nothing found that would win 2 % of a step", "good"))
    return row(Span("none can be made without steps; p chooses the ranges that are steps", "dim"))


def _verdicts(snapshot: Snapshot, width: int) -> list[Row]:
    lines = [clean(pair.verdict) for pair in snapshot.pairs]
    if not lines:
        lines = [
            f"{clean(e.label)} decodes {e.tok_s:.1f} tok/s"
            for e in snapshot.engines
            if not isinstance(e.tok_s, Unavailable)
        ]
    shown = [fit(row(Span(text, "bright")), width) for text in lines[:_MOST_VERDICTS]]
    if len(lines) > _MOST_VERDICTS:
        more = Span(f"  and {len(lines) - _MOST_VERDICTS} more (2)", "dim")
        shown[-1] = fit(row(Span(lines[_MOST_VERDICTS - 1], "bright"), more), width)
    if snapshot.message:
        shown += [row(Span(text, "fail")) for text in wrap(clean(snapshot.message), width)]
    return shown


def _not_yet(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    if isinstance(view.trace, Unavailable):
        why = clean(view.trace.reason)
    elif snapshot.state == "running":
        why = "findings are made when the run is over"
    else:
        why = "looking at every step…"
    return [row(Span(text, "dim")) for text in wrap(why, width)]


def _steps(found: Findings, view: View, width: int) -> list[Row]:
    """A bar an engine: a letter a share of the step, as long as the step is."""
    unknown = bool(found.steps) and all(w.whole_ms is not None for w in found.steps)
    name = "no steps are known: where the whole trace goes" if unknown else "where a step goes"
    title = row(Span(name, "strong"))
    note = row(Span("timeline (3) · kernels (4)", "dim"))
    out = [rule(title, note, width, view.glyphs.track)]
    longest = max((w.length_ms or 0.0 for w in found.steps), default=0.0)
    room = width - _LABEL - 1 - _MS - 2
    for words in found.steps:
        label = Span(fit_label(clean(words.label), _LABEL) + " ", "strong")
        length = words.length_ms
        if length is None or not longest:
            out.append(fit(row(label, Span(clean(words.words), "dim")), width))
            continue
        ms = Span(f"{length:7.2f} ms", "" if words.basis == "untraced" else "dim")
        if not words.parts:
            out.append(fit(row(label, ms, Span(f"  {clean(words.why)}", "dim")), width))
            continue
        bar = stacked(words, max(1, round(room * length / longest)), view.glyphs.track)
        out.append(fit(row(label, ms, "  ", *bar), width))
    out += _legend(found, width)
    if any(w.basis != "untraced" for w in found.steps):
        out.append(row(Span("as traced: what tracing adds is not known", "dim")))
    return out


def stacked(words: StepWords, cells: int, idle: str) -> list[Span]:
    """The parts of a step over so many cells (largest remainders), each with its letter."""
    total = sum(ms for _, ms in words.parts)
    if total <= 0:
        return []
    exact = [(name, cells * ms / total) for name, ms in words.parts]
    count = {name: int(share) for name, share in exact}
    left = cells - sum(count.values())
    for name, share in sorted(exact, key=lambda item: int(item[1]) - item[1])[:left]:
        count[name] += 1 if share else 0
    # Idle time last: it is what the others leave.
    names = [name for name, _ in words.parts if name != IDLE] + [IDLE]
    return [
        Span((idle if name == IDLE else category_letter(name)) * count.get(name, 0),
             "warn" if name == IDLE else category_role(name))
        for name in names
    ]  # fmt: skip


def _legend(found: Findings, width: int) -> list[Row]:
    shares: dict[str, float] = {}
    for words in found.steps:
        for name, ms in words.parts:
            shares[name] = max(shares.get(name, 0.0), ms)
    spans: list[Span] = []
    for name in sorted(shares, key=lambda n: -shares[n])[:9]:
        letter = "─" if name == IDLE else category_letter(name)
        spans += [Span(f"{letter} {clean(name)}", category_role(name)), Span("  ")]
    return [fit(row(*spans), width)] if spans else []


def _finding(index: int, item: Finding, on: bool, view: View, width: int) -> list[Row]:
    mark = view.glyphs.focus if on else " "
    amount = "n/a" if isinstance(item.ms_per_token, Unavailable) else f"{item.ms_per_token:.2f}"
    share = "" if isinstance(item.share, Unavailable) else f"{item.share:.0%}"
    head = [
        Span(f"{mark}{index + 1:>2} ", "accent0 strong" if on else "dim"),
        Span(f"{amount:>6} ms/token {share:>4}  ", "strong"),
        Span(fit_label(clean(item.engine), _LABEL) + " ", "dim"),
    ]
    used = 4 + 22 + _LABEL + 1
    if not on:
        return [fit(row(*head, Span(fit_text(clean(item.says), max(8, width - used)))), width)]
    sure = Span(f"  {item.confidence} confidence", _CONFIDENCE[item.confidence])
    out = [fit(row(*head, Span(item.cause, "accent0 strong"), sure), width)]
    indent = " " * 4
    room = max(10, width - len(indent))
    out += [row(Span(f"{indent}{line}", "bright")) for line in wrap(clean(item.says), room)]
    details = [*item.evidence]
    if item.how:
        details.append(f"ms/token: {item.how}")
    if isinstance(item.ms_per_token, Unavailable):
        details.append(f"ms/token: {item.ms_per_token.reason}")
    details.append(f"{item.confidence} confidence: {item.why}")
    for text in details:
        out += [row(Span(f"{indent}{line}", "dim")) for line in wrap(clean(text), room)]
    out += [row(Span(f"{indent}{line}")) for line in wrap(f"next: {clean(item.next)}", room)]
    return out
