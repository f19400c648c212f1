"""A folder of traces that others recorded, file by file: what opens, how much is explained, whether
the totals are right, and whether their steps are found once the ranges that say them are hidden.

    python benchmarks/public_traces.py FOLDER [--hta OTHER/bin/python] [--markdown]

*kernels* and *kernel time* are llmprof's, and equal to what a few lines of ``json`` or ``sqlite3``
in this script add up over the same file (and, with ``--hta``, to what HTA's parser gives); where
they are not, the line says so and the exit status is 1. *no category*: share of the kernel time
that no shipped rule names; more than 5 % fails too. *steps*: those that llmprof takes, and from
what. *hidden*: borders that are right / found / true with every range or stamp hidden, or why
detection refuses. The traces belong to others and stay where they are; files packed with ``.xz``
are unpacked into a temporary folder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.analysis.device.naming.categories import OTHER, categorise
from llmprof.analysis.steps.detect import detect
from llmprof.analysis.steps.events import Events, events_of
from llmprof.analysis.view.opening import open_run
from llmprof.errors import LlmprofError
from llmprof.records import RoundRecord, RunData
from llmprof.records.steps import StepChoice
from llmprof.runfile.reader import RunFileReader
from llmprof.traces.opened import readable

MOST_UNKNOWN = 0.05
ENDINGS = (".json", ".json.gz", ".sqlite", ".sqlite.xz")
HTA = (
    "import sys\nfrom hta.common.trace_parser import parse_trace_dataframe as parse\n"
    "from hta.configs.parser_config import ParserConfig\n"
    "_, frame, symbols = parse(sys.argv[1], ParserConfig.get_default_cfg())\n"
    "named = {s: i for s, i in symbols.sym_index.items()}\n"
    "mine = frame['cat'].isin([named[k] for k in ('kernel', 'Kernel') if k in named])\n"
    "print(int(mine.sum()), frame.loc[mine, 'dur'].sum())\n"
)


@dataclass(frozen=True)
class Totals:
    kernels: int
    ns: int


def plain(path: Path) -> Counter[str]:
    """What a few lines add up: kernels, and ns of kernel time under "ns"; twice the same is one."""
    sums: Counter[str] = Counter()
    if path.suffix == ".sqlite":
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as sql:
            rows = sql.execute(
                'SELECT count(*), sum("end" - start) FROM CUPTI_ACTIVITY_KIND_KERNEL'
            )
            count, total = rows.fetchone()
        sums.update({"kernels": count, "ns": total or 0})
        return sums
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        # Bare inf and lone backslashes are in real files, and json takes neither.
        text = file.read().decode("utf-8", "replace")
    document = json.loads(text, parse_float=Decimal, strict=False)
    if "rocprofiler-sdk-tool" in document:
        for tool in document["rocprofiler-sdk-tool"]:
            for one in tool["buffer_records"]["kernel_dispatch"]:
                sums["kernels"] += 1
                sums["ns"] += one["end_timestamp"] - one["start_timestamp"]
        return sums
    seen = set()
    for event in document["traceEvents"]:
        if event.get("ph") == "X" and str(event.get("cat")).lower() == "kernel":
            key = (event["name"], event["ts"], event["dur"], event["pid"], event["tid"])
            if key not in seen:
                seen.add(key)
                sums["kernels"] += 1
                sums["ns"] += round(Decimal(event["dur"]) * 1000)
    return sums


def hta(path: Path, python: str) -> str:
    """Kernels and µs as HTA's parser has them, or why it has none."""
    # Else it cuts every duration off to whole µs.
    exact = {**os.environ, "HTA_DISABLE_NS_ROUNDING": "1"}
    done = subprocess.run([python, "-c", HTA, str(path)], capture_output=True, text=True, env=exact)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason"])[-1][:60]
    kernels, total = done.stdout.strip().splitlines()[-1].split()
    return f"{int(kernels):,}, {float(total):,.3f}"


def unknown(reader: RunFileReader, whole: list[RoundRecord], data: RunData) -> tuple[int, int]:
    """(ns of kernels of no category, ns of all)."""
    none = total = 0
    for record in whole:
        kernels = reader.trace_rows(record, calls=False).kernels
        groups = categorise(kernels.names, data.engines[record.engine_id].name)
        spent = kernels.end_ns - kernels.start_ns
        other = np.array([groups[int(i)] == OTHER for i in kernels.name_id], bool)
        none, total = none + int(spent[other].sum()), total + int(spent.sum())
    return none, total


def borders_by_launch(
    reader: RunFileReader, record: RoundRecord, stamps: list[int], events: Events
) -> list[tuple[int, int]]:
    """For each step but the first the rows that may be its first: behind the last one launched in
    the step before, up to the first one launched in it."""
    api = reader.trace_rows(record).api
    order = np.argsort(api.correlation, kind="stable")
    place = np.searchsorted(api.correlation[order], events.launch)
    place = order[np.minimum(place, len(order) - 1)]
    known = api.correlation[place] == events.launch
    when = np.where(known, api.start_ns[place], events.start_ns)
    step = np.searchsorted(np.array(stamps), when, "right") - 1
    found = []
    for n in range(1, len(stamps) - 1):
        before, mine = np.flatnonzero(step == n - 1), np.flatnonzero(step == n)
        if len(before) and len(mine):
            found.append((min(int(before[-1]) + 1, int(mine[0])), int(mine[0])))
    return found


def stamped(path: Path, process: int) -> list[int]:
    """Stamps of a run whose tables were cut down to less than llmprof opens as its own."""
    if path.suffix != ".sqlite":
        return []
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as sql:
        if not sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'LLMPROF_STEP'").fetchall():
            return []
        rows = sql.execute(
            "SELECT s.start_ns, s.end_ns FROM LLMPROF_STEP s JOIN LLMPROF_ROUND r USING (round_id)"
            " WHERE r.pass_name = 'traced' AND r.pid = ? ORDER BY 1",
            (process & 0xFFFFFF,),
        ).fetchall()
    return [start for start, _ in rows] + [end for _, end in rows[-1:]]


def hidden(
    path: Path, reader: RunFileReader, data: RunData, whole: list[RoundRecord]
) -> Iterator[str]:
    """What is found of each process with its ranges or stamps hidden."""
    several = len(data.engines) > 1
    for record in whole:
        events = events_of(reader.trace_rows(record, calls=False))
        if not len(events):
            continue
        found = detect(events)
        label = f"{data.engines[record.engine_id].label}: " if several else ""
        if found.evidence is None:
            yield f"{label}refused: {found.reason}"
            continue
        rows = np.unique(np.concatenate([found.begin, found.end]))
        marked = [r for r in data.rounds_of(record.engine_id, "traced") if r.steps_from == "marked"]
        known = [r for r in marked if r.steps >= 3]
        stamps = record.stamps_ns if record.steps_from == "driven" else stamped(path, record.pid)
        if len(stamps):
            truth = np.unique(np.searchsorted(events.start_ns, stamps))
            yield f"{label}{int(np.isin(truth, rows).sum())} / {len(rows)} / {len(truth)}"
        elif known:
            bounds = borders_by_launch(reader, record, list(known[0].stamps_ns), events)
            low, high = (np.array(side) for side in zip(*bounds, strict=True))
            near = rows[(rows >= low.min()) & (rows <= high.max())]
            at = np.maximum(np.searchsorted(low, near, "right") - 1, 0)
            right = len(np.unique(at[(near >= low[at]) & (near <= high[at])]))
            yield f"{label}{right} / {len(near)} / {len(bounds)}"
        else:
            yield f"{label}{len(rows) - 1} cycles, truth unknown"


def looked_at(path: Path, python: str | None) -> tuple[list[str], bool]:
    """A line of the table, and whether all in it is as claimed."""
    try:
        read = readable(path)
        data = open_run(read)
    except LlmprofError as why:
        return ["no", "", "", "", "", str(why).partition(": ")[2]], False
    with RunFileReader(read) as reader:
        if data.info.source == "driven":
            whole = [r for r in data.rounds if r.pass_name == "traced"]
        else:
            whole = [r for r in open_run(read, StepChoice("none")).rounds if r.end_ns > r.start_ns]
        totals = [reader.process_totals(pid) for pid in {r.pid for r in whole}]
        mine = Totals(sum(t.kernels for t in totals), sum(t.kernel_ns for t in totals))
        none, all_ns = unknown(reader, whole, data)
        said = list(hidden(path, reader, data, whole))
    other = plain(path)
    good = (mine.kernels, mine.ns) == (other["kernels"], other["ns"])
    share = none / all_ns if all_ns else 0.0
    equal = "equal" if good else f"{other['kernels']:,} kernels, {other['ns'] / 1000:,.3f} µs"
    if python and path.suffix != ".sqlite":
        equal += f"; HTA {hta(path, python)}"
    steps = Counter(
        f"{found.source} {sum(r.steps for r in data.rounds_of(e, 'traced'))}"
        for e, found in data.steps_found.items()
    ) or Counter(f"driven {r.steps}" for r in whole)
    words = ", ".join(f"{n} × {text}" if n > 1 else text for text, n in steps.items())
    line = [
        f"{mine.kernels:,}",
        f"{mine.ns / 1000:,.3f}",
        equal,
        f"{share:.1%}",
        words,
        "; ".join(dict.fromkeys(said)) or "no work on a device",
    ]
    return line, good and share <= MOST_UNKNOWN


def traces(folder: Path, unpacked: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of every trace below a folder."""
    for path in sorted(p for p in folder.rglob("*") if p.name.endswith(ENDINGS) and p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix != ".xz":
            yield name, path
            continue
        target = unpacked / path.stem
        with lzma.open(path) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
        yield name, target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hta", metavar="PYTHON", help="interpreter that has HTA (traceinsight)")
    parser.add_argument("--markdown", action="store_true", help="a table for the docs")
    chosen = parser.parse_args()
    head = ["file", "kernels", "kernel time, µs", "plain script", "no category", "steps", "hidden"]
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="public-traces-") as name:
        os.environ["XDG_CACHE_HOME"] = name
        if chosen.markdown:
            print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        for shown, path in traces(chosen.folder, Path(name)):
            line, good = looked_at(path, chosen.hta)
            failed += [] if good else [shown]
            if chosen.markdown:
                print("| " + " | ".join([shown, *line]) + " |", flush=True)
            else:
                pairs: list[Any] = list(zip(head[1:], line, strict=True))
                print(f"{shown}\n" + "\n".join(f"  {k:<16} {v}" for k, v in pairs), flush=True)
    print(f"\nnot as claimed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
