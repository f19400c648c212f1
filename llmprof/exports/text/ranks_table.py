"""A group of ranks in plain text: who waits for whom, and what the collectives cost."""

from __future__ import annotations

from textwrap import wrap

from llmprof.analysis.ranks.matched.twins import SkewReport
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.traced import RunTrace
from llmprof.plaintext import one_line
from llmprof.records import Unavailable

LABEL = 24
LINE = 15


def sections(trace: RunTrace, width: int) -> dict[str, list[str]]:
    """Titled blocks, one a group; and why an engine's is missing."""
    found = {
        f"Ranks of {one_line(group.title, LABEL)}": _group(group, width) for group in trace.ranks
    }
    for skew in trace.skews:
        found[f"Skew of {one_line(skew.title, LABEL)}"] = _skew(skew, width)
    for label, why in trace.no_ranks.items():
        found[f"Ranks of {one_line(label, LABEL)}"] = _wrapped(f"n/a: {one_line(why)}", width)
    return found


def _skew(group: SkewReport, width: int) -> list[str]:
    lines = _wrapped(group.words, width)
    head = ("behind, µs", "95 %", "most", "first")
    lines.append(f"  {'begins':<{LINE}}" + "".join(f"{text:>12}" for text in head))
    for line in group.ranks:
        numbers = (line.behind_us, line.behind_95_us, line.behind_most_us)
        cells = "".join(f"{number:>12.1f}" for number in numbers)
        lines.append(f"  {one_line(line.name, LINE - 1):<{LINE}}{cells}{line.first:>12.0%}")
    for note in group.notes:
        lines += _wrapped(note, width)
    return lines


def _group(group: RanksReport, width: int) -> list[str]:
    lines = _wrapped(group.words, width)
    alone = group.provenance == "modelled"
    estimate = "~" if alone else ""
    head = ("wait", "transfer", "exposed", "compute", "idle", "late", "critical")
    lines.append(f"  {'ms a step':<{LINE}}" + "".join(f"{text:>9}" for text in head))
    for line in group.ranks:
        cells = (
            f"{estimate}{line.wait_ms:.3f}",
            f"{estimate}{line.transfer_ms:.3f}",
            f"{line.exposed_ms:.3f}",
            f"{line.compute_ms:.3f}",
            f"{line.idle_ms:.3f}",
            "n/a" if alone else f"{line.late_ms:.3f}",
            "n/a" if alone else f"{line.late_steps / max(1, group.steps):.0%}",
        )
        row = "".join(f"{cell:>9}" for cell in cells)
        lines.append(f"  {one_line(line.name, LINE - 1):<{LINE}}{row}")
    name, link = max(16, width - 58), group.nvlink_gb_s
    lines.append(
        f"  {'collective':<{name}}{'a step':>7}{'bytes':>10}{'transfer':>10}{'wait, µs':>10}"
        f"{'bus GB/s':>10}{'NVLink':>8}"
    )
    for one in group.collectives:
        bound = "≤ " if one.fused else ""
        size = "n/a" if isinstance(one.bytes, Unavailable) else str(one.bytes)
        lines.append(
            f"  {one_line(one.name, name - 1):<{name}}{one.per_step:>7.1f}{size:>10}"
            f"{f'{bound}{one.transfer_us:.2f}':>10}{f'{bound}{one.wait_us:.2f}':>10}"
            f"{one.bus_text:>10}{one.link_text(link):>8}"
        )
    if group.gpus:
        lines += _gpus(group)
    lines += _wrapped(group.clock_words, width)
    for note in group.notes:
        lines += _wrapped(note, width)
    return lines


def _gpus(group: RanksReport) -> list[str]:
    heads = ("power W", "mem GiB", "SM MHz", "DRAM %", "SM act %", "NVLink")
    lines = [f"  {'GPU':<{LINE}}" + "".join(f"{head:>9}" for head in heads)]
    for line, gpu in zip(group.ranks, group.gpus, strict=True):
        memory = gpu.memory_used_mib
        values = (
            (gpu.power_w, 0),
            (memory if isinstance(memory, Unavailable) else memory / 1024, 1),
            (gpu.sm_clock_mhz, 0),
            (gpu.dram_pct, 1),
            (gpu.sm_active_pct, 1),
            (gpu.nvlink_gb_s, 0),
        )
        cells = "".join(
            f"{'n/a' if isinstance(v, Unavailable) else f'{v:.{digits}f}':>9}"
            for v, digits in values
        )
        lines.append(f"  {one_line(line.name, LINE - 1):<{LINE}}{cells}")
        if gpu.throttle:
            held = ", ".join(f"{one_line(name)} {share:.0%}" for name, share in gpu.throttle)
            lines.append(f"    GPU {gpu.device} was held back: {held} of the samples")
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return [f"  {line}" for line in wrap(one_line(text, 400), max(20, width - 2))]
