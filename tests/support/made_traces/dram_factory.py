"""Decode steps whose kernels have a known DRAM profile, and the PM samples that they would give."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from runfile_factory import T0, UTC, sample_engine, sample_info

from llmprof.analysis.bandwidth.fit.design import Activity
from llmprof.analysis.bandwidth.fit.kernel_fit import Samples
from llmprof.records import ClockReading, EngineRecord, GpuDevice, PmRound, RoundRecord
from llmprof.runfile.schema import global_pid
from llmprof.runfile.writing.writer import RunFileWriter

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PEAK_GB_S = 3352.32


@dataclass(frozen=True)
class Planted:
    """One kernel of a step: its DRAM throughput in % of the peak, by equal parts of its time."""

    name: str
    length_ns: int
    profile_pct: tuple[float, ...]
    grid: tuple[int, int, int] = (1, 1, 1)
    stream: int = 7
    """Kernels of stream 8 begin with the kernel of stream 7 before them."""

    @property
    def mean_pct(self) -> float:
        return float(np.mean(self.profile_pct))

    @property
    def mb(self) -> float:
        return self.mean_pct / 100 * PEAK_GB_S * self.length_ns / 1e6


READ_FIRST = Planted("read_then_spin(float*)", 40_000, (80, 80, 0, 0), (128, 1, 29))
SPIN_FIRST = Planted("spin_then_read(float*)", 30_000, (0, 0, 90), (64, 1, 1))
EVEN = Planted("even(float*)", 24_000, (60,), (344, 1, 16))
SHORT = Planted("silu_mul(float*)", 1_400, (0,), (11, 1, 1))
NORM = Planted("rms_norm(float*)", 2_200, (0,), (1, 1, 1))
LAYER = (NORM, EVEN, SHORT, READ_FIRST, NORM, SPIN_FIRST)


@dataclass(frozen=True, eq=False)
class Strobe:
    """What was planted, ns on the kernels' clock."""

    start: Ints
    end: Ints
    kind: Ints
    """Index into ``kinds``."""
    kinds: tuple[Planted, ...]
    stamps: Ints
    samples: Samples
    """On a clock of their own."""

    @property
    def activity(self) -> Activity:
        return Activity(self.start, self.end, self.kind, len(self.kinds))


def strobe(
    layer: Sequence[Planted] = LAYER,
    layers: int = 12,
    steps: int = 200,
    interval_ns: int = 200_000,
    offset_ns: float = 0.0,
    drift_ns: float = 0.0,
    noise_pct: float = 0.1,
    jitter: float = 0.02,
    seed: int = 0,
    origin_ns: int = 50_000_000,
) -> Strobe:
    """Steps of some layers each, sampled at random phase.

    Args:
        offset_ns, drift_ns: the samples' clock is behind by the first, and by both at the end.
        noise_pct: of each sample, normal.
        jitter: relative spread of kernel durations and of the gaps between them.
    """
    rng = np.random.default_rng(seed)
    kinds = tuple(dict.fromkeys(layer))
    order = np.array([kinds.index(k) for k in layer] * layers)
    begin, until, kind, stamps = [], [], [], [origin_ns]
    now = origin_ns
    for _ in range(steps):
        length = np.array([kinds[n].length_ns for n in order])
        length = np.maximum(1, length * (1 + jitter * rng.standard_normal(len(order))))
        gap = rng.integers(300, 1500, len(order))
        beside = np.array([kinds[n].stream == 8 for n in order])
        advance = np.where(beside, 0, length + gap)
        at = now + np.concatenate(([0], np.cumsum(advance)[:-1]))
        at[beside] = at[np.flatnonzero(beside) - 1] + 1000
        begin.append(at)
        until.append(at + length)
        kind.append(order)
        now = int((at + length).max()) + int(rng.integers(20_000, 120_000))
        stamps.append(now)
    start = np.concatenate(begin).astype(np.int64)
    end = np.concatenate(until).astype(np.int64)
    label = np.concatenate(kind).astype(np.int64)
    sort = np.argsort(start, kind="stable")
    made = measured(
        start[sort], end[sort], label[sort], kinds, np.array(stamps), interval_ns, noise_pct, rng
    )
    s, count = made.samples, len(made.samples.dram_pct) + 1
    placed = np.concatenate((s.start_ns, s.end_ns[-1:])).astype(np.float64)
    placed = np.rint(placed - offset_ns - drift_ns * np.linspace(0, 1, count)).astype(np.int64)
    return replace(made, samples=replace(s, start_ns=placed[:-1], end_ns=placed[1:]))


def measured(
    start: Ints,
    end: Ints,
    kind: Ints,
    kinds: tuple[Planted, ...],
    stamps: Ints,
    interval_ns: int = 200_000,
    noise_pct: float = 0.1,
    rng: np.random.Generator | None = None,
) -> Strobe:
    """The samples that these kernels, ordered by start, would give."""
    rng = np.random.default_rng(0) if rng is None else rng
    edges = np.arange(stamps[0] + 1234, stamps[-1], interval_ns)
    value = np.diff(_integral(start, end, kind, kinds, edges)) / interval_ns
    value += noise_pct * rng.standard_normal(len(value))
    samples = Samples(
        edges[:-1], edges[1:], np.maximum(value, 0), np.zeros(len(value), np.int64),
        np.empty((len(value), 0)),
    )  # fmt: skip
    return Strobe(start, end, kind, kinds, stamps, samples)


def _integral(start: Ints, end: Ints, kind: Ints, kinds: Sequence[Planted], edges: Ints) -> Floats:
    """DRAM % × ns from the start of time to each edge."""
    total = np.zeros(len(edges))
    for number, planted in enumerate(kinds):
        mine = kind == number
        begin, length = start[mine].astype(float), (end - start)[mine].astype(float)
        many = len(planted.profile_pct)
        for part, level in enumerate(planted.profile_pct):
            if level:
                first = begin + length * part / many
                last = first + length / many
                knots = np.column_stack((first, last)).ravel()
                # A launch that takes longer moves the same bytes.
                moved = np.full(len(length), planted.length_ns / many)
                run = np.cumsum(moved)
                steps = np.column_stack((run - moved, run)).ravel()
                total += level * np.interp(edges, knots, steps, 0, run[-1])
    return total


def dram_run(
    path: Path,
    made: Strobe,
    copy_gb_s: float | None = 3010.0,
    further: bool = True,
    then: Callable[[RunFileWriter, EngineRecord], None] = lambda *_: None,
) -> EngineRecord:
    """A run file with one engine, a traced round of three steps and the sampled round.

    Args:
        then: called while the file is still being written.
    """
    environment = {"copy_gb_s": {"cuda:0": copy_gb_s}} if copy_gb_s else {}
    info = replace(sample_info(), environment=environment)
    engine = sample_engine(0, "torch", "cuda:0")
    pid = engine.traced_pid or 1
    with RunFileWriter(path, info) as writer:
        writer.put_engine(engine)
        writer.put_gpu_devices(
            [GpuDevice(0, "NVIDIA H100", "GPU-0", bus_width_bits=5120, max_mem_clock_mhz=2619)]
        )
        writer.put_clock(ClockReading(0, 1, "start", T0, UTC, 0, 100))
        _round(writer, engine, pid, 1, "traced", made, 0, 4)
        last = len(made.stamps) - 1
        _round(writer, engine, pid, 2, "sampled", made, 4, last)
        names = [writer.string_id(k.name) for k in made.kinds]
        grids = np.array([k.grid for k in made.kinds])
        streams = np.array([k.stream for k in made.kinds])
        writer.bulk(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            {
                "start": made.start + T0,
                "end": made.end + T0,
                "deviceId": np.zeros_like(made.start),
                "contextId": np.ones_like(made.start),
                "streamId": streams[made.kind],
                "correlationId": np.arange(1, len(made.start) + 1),
                "globalPid": np.full_like(made.start, global_pid(pid)),
                **{
                    column: np.array(names)[made.kind]
                    for column in ("demangledName", "shortName", "mangledName")
                },
                **{f"grid{axis}": grids[made.kind, i] for i, axis in enumerate("XYZ")},
                **{
                    column: np.zeros_like(made.start)
                    for column in (
                        "dynamicSharedMemory",
                        "gridId",
                        "localMemoryPerThread",
                        "localMemoryTotal",
                        "registersPerThread",
                        "staticSharedMemory",
                    )
                },
                **{f"block{axis}": np.full_like(made.start, 32) for axis in "XYZ"},
            },
        )
        s = made.samples
        counters = {"dram_write_pct": s.dram_pct * 0.1} if further else {}
        writer.put_pm_round(
            PmRound(2, 0, 200_000, "cupti", 1_500_000, 0, False),
            {
                "start": s.start_ns + T0,
                "end": s.end_ns + T0,
                "dram_pct": s.dram_pct,
                "dram_read_pct": s.dram_pct * 0.9,
                "sm_active_pct": np.full_like(s.dram_pct, 50.0),
                **counters,
            },
        )
        then(writer, engine)
        writer.set_state("finished")
    return engine


def _round(
    writer: RunFileWriter,
    engine: EngineRecord,
    pid: int,
    number: int,
    pass_name: str,
    made: Strobe,
    first: int,
    last: int,
) -> None:
    stamps = array("q", (made.stamps[first : last + 1] + T0).tolist())
    writer.put_round(
        RoundRecord(
            round_id=number, engine_id=engine.engine_id, pass_name=pass_name,  # type: ignore[arg-type]
            index=0, pid=pid, tid=pid, start_ns=stamps[0] - 2000,
            prefill_start_ns=stamps[0] - 1000, stamps_ns=stamps, end_ns=stamps[-1],
            complete=True, tokens=[[1] * len(stamps)],
        )
    )  # fmt: skip
