"""From the traced pass of a run to the lanes of its timeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from llmprof.analysis.bandwidth.kernels import KernelBandwidth
from llmprof.analysis.bandwidth.reconstruct import Profiles
from llmprof.analysis.bandwidth.sampled import SampledSteps
from llmprof.analysis.device.kernels import TracedRound
from llmprof.analysis.host.stacks import HostTrace
from llmprof.analysis.ranks.matched.joins import Joins
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.timeline.axis import (
    Floats,
    Joined,
    Lane,
    RoundKey,
    Series,
    Track,
    track_of,
    whole_track,
)
from llmprof.analysis.timeline.host import HostLane
from llmprof.analysis.timeline.lod import Curve, LaneWork
from llmprof.analysis.timing.conditions import gpu_index
from llmprof.records import EngineRecord, RoundRecord, RunData, Unavailable
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.overview import Cells
from llmprof.runfile.trace.rows import ApiRows, CopyRows, Ints, KernelRows

HOLD_NS = 1_000_000_000
"""A reading of NVML stands for what follows it, at most this long."""


class TracedEngine(Protocol):
    """What a lane is built from: the traced round of one engine (``view.traced.EngineTrace``)."""

    @property
    def label(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def record(self) -> RoundRecord | None: ...
    @property
    def round(self) -> TracedRound | Unavailable: ...
    @property
    def kernel_rows(self) -> KernelRows: ...
    @property
    def copy_rows(self) -> CopyRows: ...
    @property
    def api_rows(self) -> ApiRows: ...
    @property
    def host(self) -> HostTrace | Unavailable: ...
    @property
    def sampled(self) -> SampledSteps | Unavailable: ...
    @property
    def dram(self) -> KernelBandwidth | Unavailable: ...
    @property
    def cells(self) -> Cells | None: ...
    @property
    def further_ranks(self) -> Sequence[Member]: ...
    @property
    def joins(self) -> Joins | None: ...


def build_lane(
    data: RunData, engine: EngineRecord, trace: TracedEngine, reader: RunFileReader
) -> Lane:
    """The lane of one engine; reads what ``trace`` does not hold yet."""
    rounds = [r for r in data.rounds if r.engine_id == engine.engine_id]
    work, others = _work(trace)
    known = data.steps_found.get(engine.engine_id)
    tracks = tuple(filter(None, (_track(record, trace) for record in rounds)))
    api = trace.api_rows
    covered = np.maximum.accumulate(api.end_ns) if len(api) else api.end_ns
    begin = np.maximum(api.start_ns, np.concatenate([api.start_ns[:1], covered[:-1]]))
    there = api.end_ns > begin
    return Lane(
        label=trace.label,
        tracks=tracks,
        work=work,
        api=api,
        api_busy=Curve.of(begin[there], api.end_ns[there]),
        traced_key=(trace.record.pass_name, trace.record.index) if trace.record else None,
        series=tuple(_nvml(data, engine)),
        step_series=tuple(_per_step(trace)),
        samples=dict(_samples(data, rounds, reader)) | _reconstructed(trace),
        host=None if isinstance(trace.host, Unavailable) else HostLane.of(trace.host),
        cells=trace.cells,
        others=others,
        joined=None if trace.joins is None else Joined.of(trace.joins),
        detected=known is not None and known.source == "detected",
    )


def _work(trace: TracedEngine) -> tuple[LaneWork | Unavailable, tuple[LaneWork, ...]]:
    """Of the primary device, and of the other ones."""
    if isinstance(trace.round, Unavailable):
        return trace.round, ()
    complete_ns = None if trace.cells is None else trace.cells.start_ns
    found: dict[int, LaneWork] = {}
    for timeline in trace.round.devices:
        work = trace.round.work.on(timeline.device)
        streams = np.concatenate(
            [trace.kernel_rows.stream[work.kernel_row], trace.copy_rows.stream[work.copy_row]]
        )
        made = LaneWork(work, trace.round.categories, streams, complete_ns, timeline.device)
        found[timeline.device] = made
    primary = found.pop(trace.round.laid.device)
    ranks = [
        LaneWork(one.drawn[0], dict(one.categories), one.drawn[1], complete_ns, one.device)
        for one in trace.further_ranks
        if one.drawn is not None
    ]
    return primary, (*found.values(), *ranks)


def _track(record: RoundRecord, trace: TracedEngine) -> Track | None:
    mine = trace.record is not None and record.round_id == trace.record.round_id
    if record.steps_from == "none":
        ends = [record.prefill_start_ns, record.end_ns]
        if mine and not isinstance(trace.round, Unavailable):
            ends = trace.round.laid.bounds_ns[[0, -1]].tolist()
        return whole_track(record, *ends)
    if mine and not isinstance(trace.round, Unavailable):
        timeline = trace.round.timeline
        if not isinstance(timeline, Unavailable):
            # Of steps that are not analysed the stamps are known.
            beyond = np.array(record.stamps_ns[len(timeline.bounds_ns) :], np.int64)
            bounds = np.concatenate([timeline.bounds_ns, beyond])
            kinds = trace.round.kinds
            told = record.steps_from != "driven" or len(set(kinds)) > 1
            return track_of(record, np.maximum.accumulate(bounds), kinds if told else ())
    return track_of(record)


def _nvml(data: RunData, engine: EngineRecord) -> Iterator[Series]:
    samples = [s for s in data.gpu_samples if s.device == (gpu_index(engine) or 0)]
    for name, unit, field in (("SM clock", "MHz", "sm_clock_mhz"), ("power", "W", "power_w")):
        known = [(s.timestamp_ns, getattr(s, field)) for s in samples]
        pairs = [(at, float(value)) for at, value in known if value is not None]
        if pairs:
            start: Ints = np.array([at for at, _ in pairs], np.int64)
            end = np.minimum(np.append(start[1:], start[-1] + HOLD_NS), start + HOLD_NS)
            yield Series.of(name, unit, start, end, np.array([v for _, v in pairs], np.float64))


def _per_step(trace: TracedEngine) -> Iterator[tuple[str, str, tuple[float | None, ...], str]]:
    sampled = trace.sampled
    if isinstance(sampled, Unavailable):
        return
    for values, note in (
        (sampled.measured_gb_s, "measured in the sampled round"),
        (sampled.modelled_gb_s, "modelled"),
    ):
        if any(v is not None for v in values):
            yield "DRAM", "GB/s", values, note
            return


def _reconstructed(trace: TracedEngine) -> dict[RoundKey, tuple[Series, ...]]:
    """The DRAM curve within the traced steps, from the profiles of the kernels."""
    if isinstance(trace.round, Unavailable) or isinstance(trace.dram, Unavailable):
        return {}
    if trace.record is None:
        return {}
    start, end, value = Profiles(trace.dram).curve(trace.kernel_rows)
    if not len(start):
        return {}
    note = "fitted to samples of other rounds"
    key = (trace.record.pass_name, trace.record.index)
    return {key: (Series.of("DRAM", "GB/s", start, end, value, note),)}


def _samples(
    data: RunData, rounds: list[RoundRecord], reader: RunFileReader
) -> Iterator[tuple[RoundKey, tuple[Series, ...]]]:
    """PM samples of a sampled round: finer than a step."""
    for record in rounds:
        found = None if record.pass_name != "sampled" else reader.pm_samples(record.round_id)
        if found is None:
            continue
        facts, pm = found
        peak = next(
            (d.peak_bandwidth_gb_s for d in data.gpu_devices if d.index == facts.device), None
        )
        made = []
        dram: Floats = pm.dram_pct if peak is None else pm.dram_pct / 100 * peak
        for name, unit, values in (
            ("DRAM", "%" if peak is None else "GB/s", dram),
            ("SM active", "%", pm.sm_active_pct),
        ):
            there = np.flatnonzero(~np.isnan(values))
            if len(there):
                end = np.minimum(pm.end_ns[there], np.append(pm.start_ns[there][1:], 2**62))
                series = Series.of(name, unit, pm.start_ns[there], end, values[there], "measured")
                made.append(series)
        if made:
            yield (record.pass_name, record.index), tuple(made)
