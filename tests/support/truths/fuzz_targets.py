"""Every door that a stranger's bytes come through, as one call: bytes in, what was said out.

A call returns what a terminal would show (an error's one line, or the report). It raises on what
must not be: any exception but llmprof's own, and a control character in that text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cupti_synthetic import T0
from runfile_factory import sample_info

from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.errors import LlmprofError
from llmprof.exports.json.report import to_document
from llmprof.exports.text.table import render
from llmprof.plaintext import one_line, printable
from llmprof.recording.spooled.devices import DeviceMap
from llmprof.recording.spooled.ranges import RangeReader
from llmprof.recording.spooled.spools import Spools
from llmprof.records import Unavailable
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.sweep.columns import table_of
from llmprof.sweep.rows import hardware
from llmprof.sweep.store import Store
from llmprof.tracers.cupti.decode import Trace
from llmprof.traces.opened import readable

Call = Callable[[bytes, Path], str]


class EscapeReached(AssertionError):
    """A control character stands in what the terminal would get."""


@dataclass(frozen=True)
class Target:
    """``run`` may write below the folder that it is given, and leaves it as it was."""

    name: str
    what: str
    run: Call
    max_len: int
    """Bytes of an input that the long run makes at most."""


def checked(text: str) -> str:
    if printable(text) != text:
        at = next(i for i, (a, b) in enumerate(zip(text, printable(text), strict=False)) if a != b)
        raise EscapeReached(repr(text[max(0, at - 60) : at + 20]))
    return text


def _opened(suffix: str) -> Call:
    def run(data: bytes, folder: Path) -> str:
        file = folder / f"input{suffix}"
        file.write_bytes(data)
        read = file
        with _cache(folder):
            try:
                read = readable(file)
                return _report(read)
            except LlmprofError as why:
                return checked(str(why))
            finally:
                file.unlink()
                for made in (folder / "cache" / "llmprof" / "traces").glob("*"):
                    made.unlink()

    return run


def _report(path: Path) -> str:
    """What ``llmprof --headless --from FILE`` does, table and JSON."""
    data = open_run(path)
    trace = RunTrace(path, data)
    report = build(data)
    to_document(report, data, trace)
    return checked(render(report, 100, trace))


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def _driven_spool(data: bytes, folder: Path) -> str:
    """The worker's spool, as the parent decodes it after a round."""
    file = folder / "worker.spool"
    file.write_bytes(data)
    try:
        trace = Trace(file)
        try:
            for records in trace.records():
                for rows in (records.kernels, records.memcpy, records.memset):
                    assert (rows["end"] >= rows["start"]).all()
            for mark in trace.marks:
                clock = trace.clock(mark.round_id)
                if not isinstance(clock, Unavailable):
                    clock.monotonic(np.array([0, T0], np.int64))
            # Where a user sees it, every line goes through one_line.
            return checked("\n".join(one_line(text) for text in trace.lost))
        finally:
            trace.close()
    finally:
        file.unlink()


class _Recorded:
    """A recorder's spool, as ``llmprof record`` reads it while it grows.

    One run file takes the rows of many inputs: making one costs more than all else.
    """

    def __init__(self) -> None:
        self._writer: RunFileWriter | None = None
        self._count = 0

    def __call__(self, data: bytes, folder: Path) -> str:
        if self._writer is None or self._count % 2000 == 0:
            if self._writer is not None:
                self._writer.close()
            path = folder / "recorded.sqlite"
            path.unlink(missing_ok=True)
            self._writer = RunFileWriter(path, sample_info())
        self._count += 1
        spools = folder / "spools"
        spools.mkdir(exist_ok=True)
        file = spools / "77-1.spool"
        file.write_bytes(data)
        found = Spools(spools, self._writer, DeviceMap([]), None, lambda engine: None)
        try:
            found.read(final=True)
            said = []
            for recorded in found.all:
                image = recorded.image
                record = image.record("x")
                said += [record.label, record.executable, *record.command, *image.losses]
                said += [recorded.tail.broken, image.name, *record.devices.values()]
            said += [engine.label for engine in found.engines]
            return checked("\n".join(said))
        except LlmprofError as why:
            return checked(str(why))
        finally:
            found.close()
            file.unlink()


def _ranges(data: bytes, folder: Path) -> str:
    """NVTX frames of a recorder: two halves, as a frame's border may lie anywhere."""
    reader = RangeReader(77)
    half = len(data) // 2
    for part in (data[:half], data[half:]):
        for event in reader.read(part):
            assert event.end_ns >= event.start_ns
    assert len(reader.shapes) <= 4096
    return ""


def _sweep(data: bytes, folder: Path) -> str:
    """The folder of a sweep: the first line is ``sweep.json``, the rest its journal."""
    place = folder / "sweep"
    place.mkdir(exist_ok=True)
    grid, _, journal = data.partition(b"\n")
    (place / "sweep.json").write_bytes(grid)
    (place / "points.jsonl").write_bytes(journal)
    try:
        store = Store.open(place)
        rows = store.rows()
        table_of(rows)
        said = [point.words for point in store.left(retry_failed=True)]
        said += [hardware(row) for row in rows]
        return checked("\n".join(one_line(text) for text in said))
    except LlmprofError as why:
        return checked(printable(str(why)))  # as ``cli.main`` does: options may be in it


TARGETS = {
    target.name: target
    for target in (
        Target("kineto", "a trace of torch.profiler, opened", _opened(".json"), 16384),
        Target("rocprof", "JSON of rocprofv3, opened", _opened(".json"), 16384),
        Target("nsys", "SQLite of Nsight Systems, opened", _opened(".sqlite"), 262144),
        Target("runfile", "a run of llmprof, opened", _opened(".sqlite"), 262144),
        Target("spool", "a worker's spool, decoded", _driven_spool, 8192),
        Target("recorded", "a recorder's spool, imported", _Recorded(), 8192),
        Target("sweep", "the folder of a sweep", _sweep, 16384),
        Target("nvtx", "NVTX frames of a recorder", _ranges, 4096),
    )
}
