"""``llmprof findings --json``: what matters, in at most 4 kB, for a program or an agent."""

from __future__ import annotations

import json
from typing import Any, Final

from llmprof.analysis.findings.ranked import Findings
from llmprof.analysis.findings.subject import Finding
from llmprof.plaintext import one_line
from llmprof.records import Maybe, Unavailable

LIMIT: Final = 4096
"""Bytes of the document, the last line's end included."""
VERSION: Final = 1
Document = dict[str, Any]
_LEVELS: Final = ((240, 3, True), (160, 2, True), (140, 1, True), (140, 1, False))
"""(characters of a text, evidence of a finding, with how and why), tried one after the other."""


def document(
    name: str, found: Findings, level: tuple[int, int, bool] = _LEVELS[0], most: int = 99
) -> Document:
    """The whole of it, with at most so many findings."""
    length = level[0]

    def text(value: str) -> str:
        return one_line(value, length)

    return {
        "llmprof_findings": VERSION,
        "run": text(name),
        "verdicts": [text(v) for v in found.verdicts[:4]],
        "engines": [
            {"engine": one_line(w.label, 60), **_number("step_ms", w.step_ms),
             "step": text(w.words)}
            for w in found.steps[:4]
        ],
        "findings": [
            _finding(rank, item, level) for rank, item in enumerate(found.found[:most], 1)
        ],
        "left_out": found.dropped + max(0, len(found.found) - most),
        **({"not_looked_at": [text(f"{e}: {w}") for e, w in found.missing[:3]]}
           if found.missing else {}),
    }  # fmt: skip


def to_text(name: str, found: Findings) -> str:
    """One JSON document of at most ``LIMIT`` bytes: first texts get shorter, then the weakest
    findings are left out (``left_out`` counts them)."""
    made = ""
    for most in range(len(found.found), -1, -1):
        for level in _LEVELS:
            made = json.dumps(
                document(name, found, level, most),
                ensure_ascii=False,
                allow_nan=False,
                separators=(",", ":"),
            )
            if len(made.encode()) < LIMIT:
                return made + "\n"
    return made + "\n"


def _finding(rank: int, item: Finding, level: tuple[int, int, bool]) -> Document:
    length, evidence, reasons = level
    said = {"how": one_line(item.how, length), "why": one_line(item.why, length)}
    return {
        "rank": rank,
        "cause": item.cause,
        "engine": one_line(item.engine, 60),
        "says": one_line(item.says, length),
        **_number("ms_per_token", item.ms_per_token),
        **_share(item.share),
        "evidence": [one_line(text, length) for text in item.evidence[:evidence]],
        **({"step": item.step} if item.step is not None else {}),
        **({"kernel": one_line(item.kernel, 60)} if item.kernel is not None else {}),
        "confidence": item.confidence,
        **(said if reasons else {}),
        "next": one_line(item.next, 160),
    }


def _number(key: str, value: Maybe) -> Document:
    if isinstance(value, Unavailable):
        return {key: None, f"{key}_reason": one_line(value.reason, 100)}
    return {key: round(value, 4)}


def _share(value: Maybe) -> Document:
    return {} if isinstance(value, Unavailable) else {"share": round(value, 3)}
