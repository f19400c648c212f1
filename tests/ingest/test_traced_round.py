"""Raw CUPTI buffers recorded on an H100, in a run file: nsys and the JSON agree on them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import subprocess
from array import array
from pathlib import Path

import pytest
from runfile_factory import sample_engine, sample_info

from llmprof.analysis.device.attribution import attribute
from llmprof.ingest.activities import base_name
from llmprof.ingest.traced_round import Imported, TraceImport
from llmprof.records import RoundRecord, Unavailable
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.cupti.decode import Trace

FIXTURES = Path(__file__).parents[1] / "fixtures"
PID = 4321
NSYS = shutil.which("nsys")


def unpacked(tmp_path: Path, name: str) -> Path:
    spool = tmp_path / name
    spool.write_bytes(gzip.decompress((FIXTURES / "cupti" / f"{name}.spool.gz").read_bytes()))
    return spool


@pytest.fixture
def imported(tmp_path: Path) -> tuple[Path, list[RoundRecord], dict[int, Imported]]:
    """A run file with the rounds of ``torch-full``, each with one decode step around all of it."""
    spool = unpacked(tmp_path, "torch-full")
    marks = Trace(spool).marks
    first = min(mark.monotonic_ns for mark in marks)
    file = tmp_path / "run.sqlite"
    rounds, found = [], {}
    with RunFileWriter(file, sample_info(t0_ns=first - 1_000_000)) as writer:
        writer.put_engine(sample_engine(0, "torch", "cuda:0"))
        for round_id in sorted({mark.round_id for mark in marks}):
            begin, end = (
                next(m.monotonic_ns for m in marks if (m.round_id, m.where) == (round_id, where))
                for where in ("begin", "end")
            )
            record = RoundRecord(
                round_id=round_id, engine_id=0, pass_name="traced", index=len(rounds), pid=PID,
                tid=thread_of(spool, round_id), start_ns=begin - 3000,
                prefill_start_ns=begin - 2000, stamps_ns=array("q", [begin - 1000, end]),
                end_ns=end + 1, complete=True,
            )  # fmt: skip
            writer.put_round(record)
            done = TraceImport(writer, 0, PID).round(spool, round_id)
            assert isinstance(done, Imported), done
            found[round_id] = done
            rounds.append(record)
    return file, rounds, found


def thread_of(spool: Path, round_id: int) -> int:
    """The thread that launched: nsys joins launches to ranges by it."""
    for records in Trace(spool).records(round_id):
        if len(records.api):
            return int(records.api["tid"][0])
    return PID


def test_rows_come_back_as_they_were_recorded(imported) -> None:
    file, _, found = imported
    with RunFileReader(file) as reader:
        data = reader.run_data()
        for record in data.rounds:
            rows = reader.trace_rows(record)
            done = found[record.round_id]
            assert len(rows.kernels) == done.kernels > 0
            assert len(rows.copies) == done.copies
            assert len(rows.api) == done.api > done.kernels / 100
            assert done.lost == []
            assert done.error_ns < 5000
            assert set(rows.kernels.correlation.tolist()) <= set(rows.api.correlation.tolist())
            assert all(not name.startswith("_Z") for name in rows.kernels.names.values())
            assert attribute(rows, record, done.error_ns).method is not None
        assert {clock.where for clock in data.clocks} == {"begin", "end"}


def nsys_rows(report: str, file: Path) -> list[dict[str, str]]:
    command = ["timeout", "-s", "KILL", "120", str(NSYS), "stats", "-q", "-r", report]
    done = subprocess.run(
        [*command, "-f", "csv", "-o", "-", str(file)], capture_output=True, text=True, check=False
    )
    rows = list(csv.DictReader(io.StringIO(done.stdout.strip() + "\n")))
    assert rows, done.stdout + done.stderr
    return rows


def names() -> tuple[str, str]:
    version = subprocess.run([str(NSYS), "--version"], capture_output=True, text=True).stdout
    return ("gpukernsum", "nvtxkernsum") if " 2022." in version else (
        "cuda_gpu_kern_sum", "nvtx_kern_sum")  # fmt: skip


@pytest.mark.skipif(NSYS is None, reason="nsys is not installed")
def test_nsys_adds_up_to_the_same_kernels(imported) -> None:
    file, _, found = imported
    summary, by_range = names()
    kernels = sum(done.kernels for done in found.values())
    rows = nsys_rows(summary, file)
    assert sum(int(row["Instances"]) for row in rows) == kernels
    with RunFileReader(file) as reader:
        total = sum(
            int((k.end_ns - k.start_ns).sum())
            for k in (reader.trace_rows(record).kernels for record in reader.run_data().rounds)
        )
    assert sum(int(row["Total Time (ns)"]) for row in rows) == total
    ranged = [r for r in nsys_rows(by_range, file) if r["NVTX Range"] == "llmprof:decode 1"]
    assert sum(int(row["Kern Inst"]) for row in ranged) == kernels
    assert sum(int(row["Total Time (ns)"]) for row in ranged) == total


@pytest.mark.skipif(NSYS is None, reason="nsys is not installed")
def test_nsys_and_json_agree_on_a_whole_run(llmprof) -> None:
    file = FIXTURES / "h100_graph.sqlite"
    engines = json.loads(llmprof("--json", "--from", str(file)).stdout)["engines"]
    gpu = [engine["tracing"]["gpu"] for engine in engines]
    rows = nsys_rows(names()[0], file)
    assert sum(int(r["Instances"]) for r in rows) == sum(g["round_kernels"] for g in gpu)
    assert sum(int(r["Total Time (ns)"]) for r in rows) == sum(g["round_kernel_ns"] for g in gpu)


def test_measured_bandwidth_of_every_step_lies_beside_the_modelled(llmprof) -> None:
    done = llmprof("--json", "--from", str(FIXTURES / "h100_graph.sqlite"))
    for engine in json.loads(done.stdout)["engines"]:
        sampled = engine["tracing"]["dram_per_step"]
        assert None not in sampled["measured_gb_s"]
        assert sampled["mean_measured_gb_s"] == pytest.approx(
            sampled["mean_modelled_gb_s"], rel=0.05
        )


def test_a_round_that_was_not_finished_is_no_trace(tmp_path: Path) -> None:
    spool = unpacked(tmp_path, "torch-kernels")
    with RunFileWriter(tmp_path / "run.sqlite", sample_info()) as writer:
        importer = TraceImport(writer, 0, PID)
        assert isinstance(importer.round(spool, 999), Unavailable)
        assert isinstance(importer.round(tmp_path / "none", 1), Unavailable)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("void at::native::(anonymous namespace)::f<int, (x)1>(int, a<b>)", "f"),
        ("nvjet_sm90_hsh_256x8", "nvjet_sm90_hsh_256x8"),
        ("void cublasLt::splitKreduce_kernel<32, 16>(p<float>)", "splitKreduce_kernel"),
        ("", ""),
    ],
)
def test_short_names_are_those_of_nsys(name: str, base: str) -> None:
    assert base_name(name) == base
