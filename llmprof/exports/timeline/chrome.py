"""``--to chrome``: Chrome's trace event format (JSON), for chrome://tracing and others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from llmprof.exports.formats import Progress
from llmprof.exports.loaded import read_data
from llmprof.exports.timeline.tracks import Point, Slice, Track, events
from llmprof.records.steps import (
    StepChoice,
)


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """One JSON object with ``traceEvents``; times in µs as the format wants them."""
    with out.open("w", encoding="ascii") as file:
        file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
        first = True
        for number, path in enumerate(files):
            progress(path.name, number / len(files))
            data = read_data(path, steps)
            for event in _events(path, data, number * 1000):
                first = _put(file, event, first)
        file.write("\n]}\n")


def _put(file: TextIO, event: dict[str, Any], first: bool) -> bool:
    file.write(("" if first else ",\n") + json.dumps(event, allow_nan=False))
    return False


def _events(path: Path, data: Any, base: int) -> Iterator[dict[str, Any]]:
    threads: dict[Track, int] = {}
    for event in events(path, data):
        track = event.track
        pid = base + track.pid
        if track not in threads:
            if not any(t.pid == track.pid for t in threads):
                yield _meta(pid, 0, "process_name", track.process)
            threads[track] = len(threads) + 1
            if track.kind != "counter":
                yield _meta(pid, threads[track], "thread_name", track.name)
        if isinstance(event, Point):
            name = f"{track.name} [{track.unit}]"
            value = {"value": event.value}
            yield {"ph": "C", "pid": pid, "name": name, "ts": event.time_ns / 1e3, "args": value}
        else:
            yield _slice(event, pid, threads[track])


def _slice(event: Slice, pid: int, tid: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": event.start_ns / 1e3,
        "dur": (event.end_ns - event.start_ns) / 1e3,
        "name": event.name,
        "cat": event.category,
        "args": event.args,
    }


def _meta(pid: int, tid: int, what: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}}
