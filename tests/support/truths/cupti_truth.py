"""Checks a folder of ``gpu/cupti/record_cupti_fixture.py``: what was decoded against what is known.

``truth.json`` beside the spools holds, for each part, what torch.profiler saw in another process
running the same loop, and what is known by construction.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.records import Unavailable
from llmprof.tracers.cupti.decode import Trace
from llmprof.tracers.cupti.layout import DRIVER, RUNTIME

MAX_CLOCK_ERROR_NS = 50_000
Verdict = tuple[bool, str]

HTOD, DTOH, DTOD = 1, 2, 8  # CUpti_ActivityMemcpyKind


def open_spool(path: Path, folder: Path) -> Trace:
    plain = folder / path.stem
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    return Trace(plain)


def check_folder(folder: Path) -> Iterator[Verdict]:
    """(passed, what) for every check."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        for level in ("kernels", "full"):
            trace = open_spool(folder / f"torch-{level}.spool.gz", Path(scratch))
            yield from _whole(trace, level)
            for round_id, part in enumerate(truth["parts"], 1):
                where = f"torch, {level}, {part['name']}"
                yield from _part(trace, round_id, part, truth, where, level == "full")
            yield equal(f"torch, {level}: lost", trace.lost, [])
            trace.close()
        trace = open_spool(folder / "driver-full.spool.gz", Path(scratch))
        yield from _whole(trace, "driver")
        yield from _driver(trace, truth["driver_calls"])
        trace.close()


def equal(what: str, found: Any, wanted: Any) -> Verdict:
    return found == wanted, f"{what}: {found}" + ("" if found == wanted else f", wanted {wanted}")


def _whole(trace: Trace, what: str) -> Iterator[Verdict]:
    layout = trace.layout
    if isinstance(layout, Unavailable):
        yield False, f"{what}: {layout.reason}"
        return
    yield True, f"{what}: CUPTI {layout.cupti_version}, layout from {layout.source}"


def _columns(trace: Trace, round_id: int) -> dict[str, Any]:
    """The arrays of one round, joined over its buffers."""
    found = list(trace.records(round_id))
    names = ("kernels", "memcpy", "memset", "api", "sync")
    return {n: np.concatenate([getattr(f, n) for f in found]) for n in names} if found else {}


def _in_round(trace: Trace, round_id: int, columns: dict[str, Any], where: str) -> Verdict:
    clock = trace.clock(round_id)
    if isinstance(clock, Unavailable):
        return False, f"{where}: {clock.reason}"
    slack = 2 * clock.error_ns + 1000
    low, high = clock.begin.monotonic_ns - slack, clock.end.monotonic_ns + slack
    inside = all(
        (clock.monotonic(columns[name]["start"]) >= low).all()
        and (clock.monotonic(columns[name]["end"]) <= high).all()
        for name in ("kernels", "memcpy", "memset")
    )
    good = inside and clock.error_ns < MAX_CLOCK_ERROR_NS
    return good, f"{where}: times inside the round: {inside}, clock error {clock.error_ns} ns"


def _part(
    trace: Trace, round_id: int, part: dict[str, Any], truth: dict[str, Any], where: str, full: bool
) -> Iterator[Verdict]:
    columns = _columns(trace, round_id)
    if not columns:
        yield False, f"{where}: no records"
        return
    kernels = columns["kernels"]
    names = [trace.kernel_names.get(p, "?") for p in kernels["name_ptr"].tolist()]
    plain = [truth["demangled"].get(name, name) for name in names]
    wanted = {name: count for name, (count, _) in part["kernels"].items()}
    found = dict(Counter(plain))
    differ = {k: (found.get(k), wanted.get(k)) for k in {*found, *wanted} if found != wanted}
    odd = {k: v for k, v in differ.items() if v[0] != v[1]}
    yield (
        not odd,
        f"{where}: {len(kernels)} kernels, {len(found)} names"
        + (f"; ours/profiler differ: {odd}" if odd else ", as torch.profiler"),
    )
    yield equal(f"{where}: copies", len(columns["memcpy"]), part["memcpy"])
    yield equal(f"{where}: sets", len(columns["memset"]), part["memset"])
    if part["launches"] is not None:
        yield equal(f"{where}: launches by construction", len(kernels), part["launches"])
    busy = int((kernels["end"] - kernels["start"]).sum())
    theirs = sum(duration for _, duration in part["kernels"].values())
    close = 0.4 < busy / max(1, theirs) < 2.5  # two runs; clocks may differ
    yield close, f"{where}: busy {busy / 1e3:.0f} µs, torch.profiler {theirs / 1e3:.0f} µs"
    yield _in_round(trace, round_id, columns, where)
    if part["graph"]:
        inside = int((kernels["graph_node"] != 0).sum())
        yield equal(f"{where}: kernels with a graph node", inside, len(kernels))
    if full:
        yield from _api(trace, columns, where)
    else:
        yield equal(f"{where}: API records", len(columns["api"]), 0)


def _api(trace: Trace, columns: dict[str, Any], where: str) -> Iterator[Verdict]:
    api = columns["api"]
    calls = Counter(
        trace.api_names.get(key, "?")
        for key in zip(api["kind"].tolist(), api["cbid"].tolist(), strict=True)
    )
    launches = sum(n for name, n in calls.items() if "Launch" in name)
    yield launches > 0, f"{where}: {len(api)} API records, {launches} of launches"
    yield equal(f"{where}: API records without a name", calls["?"], 0)
    orphans = set(columns["kernels"]["correlation"].tolist()) - set(api["correlation"].tolist())
    yield not orphans, f"{where}: kernels without an API call: {len(orphans)}"


def _driver(trace: Trace, wanted: dict[str, Any]) -> Iterator[Verdict]:
    where = "driver"
    columns = _columns(trace, 1)
    if not columns:
        yield False, f"{where}: no records"
        return
    kernels, copies, sets = columns["kernels"], columns["memcpy"], columns["memset"]
    yield equal(f"{where}: kernels", len(kernels), wanted["launches"])
    names = {trace.kernel_names.get(p, "?") for p in kernels["name_ptr"].tolist()}
    yield equal(f"{where}: name", sorted(names), [wanted["kernel"]])
    shape = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "dynamic_shared")
    found = sorted({tuple(int(row[name]) for name in shape) for row in kernels})
    yield equal(f"{where}: grid, block, shared memory", found, [tuple(wanted["shape"])])
    kinds = Counter(copies["copy_kind"].tolist())
    yield equal(
        f"{where}: copies by kind", [kinds[k] for k in (HTOD, DTOH, DTOD)], wanted["copies"]
    )
    yield equal(f"{where}: bytes copied", int(copies["bytes"].sum()), wanted["bytes_copied"])
    yield equal(f"{where}: sets", len(sets), wanted["sets"])
    yield equal(f"{where}: bytes set", int(sets["bytes"].sum()), wanted["bytes_set"])
    api = columns["api"]
    calls = set(zip(api["kind"].tolist(), api["cbid"].tolist(), strict=True))
    launches = [key for key in calls if "cuLaunchKernel" in trace.api_names.get(key, "")]
    count = sum(int(((api["kind"] == k) & (api["cbid"] == c)).sum()) for k, c in launches)
    yield equal(f"{where}: cuLaunchKernel calls", count, wanted["launches"])
    yield equal(f"{where}: RUNTIME calls", int((api["kind"] == RUNTIME).sum()), 0)
    mine = api[api["kind"] == DRIVER]
    who = sorted({(int(row["pid"]), int(row["tid"])) for row in mine})
    yield equal(f"{where}: process and thread", who, [tuple(wanted["who"])])
    yield bool(len(columns["sync"])), f"{where}: {len(columns['sync'])} synchronisations"
    yield equal(f"{where}: lost", trace.lost, [])
    yield _in_round(trace, 1, columns, where)
