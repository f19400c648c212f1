"""The session fits an engine's sampled rounds once and keeps the fit."""

from __future__ import annotations

from pathlib import Path

from dram_factory import dram_run, strobe

from llmprof.analysis.bandwidth.kept import kept_bandwidth
from llmprof.analysis.bandwidth.kernels import KernelBandwidth
from llmprof.records import EngineRecord
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.session.recorder import Recorder


def test_the_fit_is_in_the_file_before_the_run_ends(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"

    def fit(writer: RunFileWriter, engine: EngineRecord) -> None:
        Recorder(writer, []).dram_fit(engine)
        without = EngineRecord(1, "exllama", "exllama", "python", {}, state="ready")
        writer.put_engine(without)
        Recorder(writer, []).dram_fit(without)

    dram_run(path, strobe(steps=100), then=fit)
    with RunFileReader(path) as reader:
        data = reader.run_data()
        found = kept_bandwidth(reader, data, data.engines[0])
        assert isinstance(found, KernelBandwidth)
        assert {k.short_name for k in found.kernels} >= {"even", "read_then_spin"}
        assert reader.dram_fit(1) is None
