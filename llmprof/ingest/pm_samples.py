"""What the sampler of one GPU's counters saw in a stretch of time, as a round of the run file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmprof.records import PmRound
from llmprof.runfile.writing.writer import RunFileWriter

if TYPE_CHECKING:
    from llmprof.tracers.pm.tracer import PmSamples


def put_pm_samples(writer: RunFileWriter, round_id: int, device: int, samples: PmSamples) -> None:
    """One row a sample, and one of the round that they belong to."""
    sampled = PmRound(
        round_id=round_id,
        device=device,
        interval_ns=samples.interval_ns,
        clock=samples.clock.method,
        clock_error_ns=samples.clock.error_ns,
        dropped=samples.dropped,
        overflow=samples.overflow,
    )
    columns = {
        "start": samples.start_ns,
        "end": samples.end_ns,
        "dram_pct": samples.dram_pct,
        "dram_read_pct": samples.dram_read_pct,
        "sm_active_pct": samples.sm_active_pct,
        **samples.further,
    }
    writer.put_pm_round(sampled, columns)
