"""What the run knows of a group of ranks beside its kernels: GPUs, and the late rank's host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmprof.analysis.bandwidth.pm_steps import weighted_means
from llmprof.analysis.device.sweep import Spans
from llmprof.analysis.host.frames import label
from llmprof.analysis.ranks.gpus import Counted, rank_gpu, with_gpus
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.timing.conditions import conditions_of
from llmprof.records import EngineRecord, Maybe, RoundRecord, RunData, Unavailable
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import pm_round
from llmprof.runfile.trace.rows import Ints

LEAST_SAMPLES = 5
"""Of the late rank's host, before a function is named."""
DATED_NS = 1_000_000
"""Samples of a rank may be off by so much: on two H100s those of rank 1 were dated 0.8 ms before
the launches that CUPTI saw, by one py-spy for all ranks, and still too early by one of its own. A
function is named if it leads however they are moved."""


def with_facts(
    reader: RunFileReader, data: RunData, engines: Sequence[EngineRecord], group: RanksReport
) -> RanksReport:
    """The group with its GPUs, and its reason with the host's function."""
    rounds = [r for e in engines for r in data.rounds if r.engine_id == e.engine_id]
    timed = [r for r in rounds if r.pass_name == "timing"]
    if data.gpu_samples or any(r.pass_name == "sampled" for r in rounds):
        known = {d.index: d for d in data.gpu_devices}
        gpus = [
            rank_gpu(
                one.device,
                known.get(one.device),
                conditions_of(data, timed or rounds, one.device, group.title),
                _counted(reader, data, engines, rounds, group, one),
            )
            for one in group.members
        ]
        group = with_gpus(group, gpus)
    return group


def _counted(
    reader: RunFileReader,
    data: RunData,
    engines: Sequence[EngineRecord],
    rounds: Sequence[RoundRecord],
    group: RanksReport,
    one: Member,
) -> Counted | Unavailable:
    sampled = [r for r in rounds if r.pass_name == "sampled" and r.steps]
    names = ("pm", f"pm of GPU {one.device}")
    reasons = (data.why_missing(e.label, name) for e in engines for name in names)
    why = Unavailable(next((r for r in reasons if r), "the GPU's counters were not sampled"))
    if not sampled:
        return why
    primary = group.members[0].device
    found = reader.pm_samples(pm_round(sampled[0].round_id, one.device, primary))
    if found is None or not len(found[1].start_ns):
        return why
    stamps = np.array(sampled[0].stamps_ns, np.int64)[[0, -1]]
    means: list[Maybe] = []
    for values in (found[1].dram_pct, found[1].sm_active_pct):
        mean = float(weighted_means(stamps, found[1].start_ns, found[1].end_ns, values)[0][0])
        means.append(mean if np.isfinite(mean) else Unavailable("no sample in a decode step"))
    return Counted(*means)


def with_host(reader: RunFileReader, record: RoundRecord, group: RanksReport) -> RanksReport:
    """Where the late rank's host stood before the collectives that it came late to, from sampled
    stacks of its process; unchanged where there are none."""
    why = group.reason
    if why is None or why.why not in ("host", "idle"):
        return group
    late = next(m for m in group.members if m.rank == why.rank)
    rows = reader.host_rows(replace(record, pid=late.pid))
    if rows is None:
        return group
    main = record.tid if late.pid == record.pid else late.pid
    seen = [
        (sample.time_ns, label(frame, with_line=False))
        for sample in rows.samples
        if sample.tid == main and sample.stack
        if (frame := rows.frames.get(sample.stack[0])) is not None
    ]
    time_ns: Ints = np.array([at for at, _ in seen], np.int64)
    names = [name for _, name in seen]
    found = [_leading(time_ns + shift, names, why.before) for shift in (0, -DATED_NS, DATED_NS)]
    if found[0] is None or len({None if one is None else one[0] for one in found}) > 1:
        return group
    name, share, total = found[0]
    words = f"{why.words}; meanwhile its host was in {name} in {share:.0%} of {total} samples"
    told = group.words.removesuffix(why.words) + words
    return replace(group, words=told, reason=replace(why, words=words))


def _leading(time_ns: Ints, names: Sequence[str], before: Spans) -> tuple[str, float, int] | None:
    """The function that most of the samples inside the stretches stand in, its share, and of how
    many; ``None`` where none has half of them."""
    begin, finish = before
    at = np.searchsorted(begin, time_ns, "right") - 1
    inside = (at >= 0) & (time_ns < finish[at])
    counts = Counter(names[i] for i in np.flatnonzero(inside).tolist())
    total = sum(counts.values())
    if total < LEAST_SAMPLES:
        return None
    ((name, count),) = counts.most_common(1)
    return (name, count / total, total) if 2 * count >= total else None
