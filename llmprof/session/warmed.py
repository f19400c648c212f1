"""What a run says of an engine's warm-up, from the worker's reply."""

from __future__ import annotations

from typing import Any

from llmprof.records import EngineInfo

_SLOW = 1.5
"""The first step at a KV length is said to be slower from so many times as long on."""


def warnings_of(facts: dict[str, Any], info: EngineInfo | None, timed: bool) -> list[str]:
    """Args:
    facts: a ``WarmUp`` of ``worker.rounds``.
    timed: of the worker that is timed, not of the traced pass.
    """
    found, where = [], "" if timed else "traced pass: "
    if facts["lacking"]:
        found.append(
            f"{where}warm-up ended {facts['lacking']} steps before the engine is as fast as it"
            " gets: more time (--max-time) makes them"
        )
    elif not facts["stable"]:
        found.append(
            f"{where}warm-up ended after {facts['steps']} steps without a stable step time"
        )
    met, step_ms = facts.get("met"), facts["step_ns"] / 1e6
    if met and timed and met["step_ns"] / 1e6 > _SLOW * step_ms:
        why = info.warmup_lengths if info else ""
        found.append(
            f"a step at a KV length that it meets for the first time took"
            f" {met['step_ns'] / 1e6:.1f} ms in warm-up, later {step_ms:.1f} ms; rounds are timed"
            f" after that: {why}"
        )
    return found
