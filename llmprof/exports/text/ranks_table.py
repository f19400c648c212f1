"""A group of ranks in plain text: who waits for whom, and what the collectives cost."""

from __future__ import annotations

from textwrap import wrap

from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.traced import RunTrace
from llmprof.plaintext import one_line
from llmprof.records import Maybe, Unavailable

LABEL = 24
NAME = 34


def sections(trace: RunTrace, width: int) -> dict[str, list[str]]:
    """Titled blocks, one a group; and why an engine's is missing."""
    found = {
        f"Ranks of {one_line(group.title, LABEL)}": _group(group, width) for group in trace.ranks
    }
    for label, why in trace.no_ranks.items():
        found[f"Ranks of {one_line(label, LABEL)}"] = _wrapped(f"n/a: {one_line(why)}", width)
    return found


def _group(group: RanksReport, width: int) -> list[str]:
    lines = _wrapped(group.words, width)
    estimate = "≈" if group.provenance == "modelled" else ""
    head = ("wait", "transfer", "exposed", "compute", "idle", "makes wait", "critical")
    lines.append(f"  {'ms a step':<18}" + "".join(f"{text:>{_room(text)}}" for text in head))
    for line in group.ranks:
        cells = [
            f"{estimate}{line.wait_ms:.3f}",
            f"{estimate}{line.transfer_ms:.3f}",
            f"{line.exposed_ms:.3f}",
            f"{line.compute_ms:.3f}",
            f"{line.idle_ms:.3f}",
            f"{line.late_ms:.3f}" if group.provenance == "measured" else "n/a",
            f"{line.late_steps}/{group.steps}" if group.provenance == "measured" else "n/a",
        ]
        row = "".join(f"{cell:>{_room(text)}}" for cell, text in zip(cells, head, strict=True))
        lines.append(f"  {one_line(line.name, 17):<18}{row}")
    lines.append(
        f"  {'collective':<{NAME}}{'a step':>7}{'transfer µs':>12}{'wait µs':>9}{'bytes':>9}"
        f"{'bus GB/s':>9}"
    )
    for one in group.collectives:
        bound = "≤ " if one.fused else ""
        size = "n/a" if isinstance(one.bytes, Unavailable) else str(one.bytes)
        lines.append(
            f"  {one_line(one.name, NAME - 1):<{NAME}}{one.per_step:>7.1f}"
            f"{f'{bound}{one.transfer_us:.2f}':>12}{f'{bound}{one.wait_us:.2f}':>9}{size:>9}"
            f"{_rate(one.bus_gb_s):>9}"
        )
    lines += _wrapped(group.clock_words, width)
    for note in group.notes:
        lines += _wrapped(note, width)
    return lines


def _room(text: str) -> int:
    return max(9, len(text) + 1)


def _rate(value: Maybe) -> str:
    return "n/a" if isinstance(value, Unavailable) else f"{value:.2f}"


def _wrapped(text: str, width: int) -> list[str]:
    return [f"  {line}" for line in wrap(one_line(text, 400), max(20, width - 2))]
