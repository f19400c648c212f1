"""A run of a tensor-parallel engine from its file to every output: all ranks are in it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import ranks_factory
from ranks_run import run_of

from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.json import schema
from llmprof.exports.json.report import to_document
from llmprof.exports.text import csv_tables
from llmprof.exports.text.table import render
from llmprof.records import Unavailable
from llmprof.records.steps import AUTO_STEPS

STEPS = 8


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = ranks_factory.group(2, STEPS, host_ns={1: 400_000})
    return run_of(tmp_path_factory.mktemp("ranks") / "tp2.sqlite", members)


def test_every_rank_is_in_the_run_and_the_late_one_is_named(file: Path) -> None:
    data = open_run(file)
    assert [one.rank for one in data.engines[0].traced_ranks] == [0, 1]
    trace = RunTrace(file, data)
    assert trace.no_ranks == {}
    (group,) = trace.ranks
    assert (group.title, group.steps, group.world) == ("torch", STEPS, 2)
    assert group.reason is not None
    assert (group.reason.rank, group.reason.why) == (1, "host")
    assert [line.unmatched for line in group.ranks] == [0, 0]


def test_the_waterfall_has_wait_and_transfer_which_add_up(file: Path) -> None:
    data = open_run(file)
    trace = RunTrace(file, data)
    parts = trace.engines[0].parts
    assert not isinstance(parts, Unavailable)
    assert sum(parts.parts_ns.values()) == parts.step_ns
    assert "communication" not in parts.parts_ns
    assert parts.parts_ns["communication: wait"] == pytest.approx(400_000, rel=0.02)
    # Six all-reduces and an all-gather.
    transfer = 7 * ranks_factory.TRANSFER_NS
    assert parts.parts_ns["communication: transfer"] == pytest.approx(transfer, rel=0.1)


def test_json_text_and_tables(file: Path, tmp_path: Path) -> None:
    data = open_run(file)
    trace = RunTrace(file, data)
    document = to_document(build(data), data, trace)
    jsonschema.validate(document, json.loads(schema.text()))
    (group,) = document["ranks"]
    assert group["verdict"] == "late"
    assert np.array(group["late_ns_of_rank_and_step"]).shape == (2, STEPS)
    reduce = group["collectives"][0]
    assert reduce["bytes"] == 10_240
    text = render(build(data), 80, trace)
    assert "Ranks of torch" in text
    assert "rank 1 · GPU 1" in text
    assert max(map(len, text.splitlines())) <= 80
    csv_tables.write([file], tmp_path / "tables", lambda *_: None, AUTO_STEPS)
    with (tmp_path / "tables" / "rank_steps.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 2 * STEPS
    assert {row["critical"] for row in rows if row["rank"] == "1"} == {"True"}


def test_a_rank_without_kernels_is_said(tmp_path: Path) -> None:
    members = ranks_factory.group(2, STEPS)
    empty = replace(
        members[1],
        **{name: getattr(members[1], name)[:0] for name in ("start_ns", "end_ns", "label")},
        launch_ns=members[1].launch_ns[:0],
    )
    path = run_of(tmp_path / "half.sqlite", [members[0], empty])
    (group,) = RunTrace(path, open_run(path)).ranks
    assert group.provenance == "modelled"
    assert "rank 0 of 2 was recorded" in group.notes


def test_one_process_on_two_gpus_without_collectives_says_how_far_they_are_apart(
    tmp_path: Path,
) -> None:
    members = []
    for one in ranks_factory.group(2, STEPS):
        mine = ~one.communicates
        columns = ("start_ns", "end_ns", "label", "launch_ns")
        kept = {name: getattr(one, name)[mine] for name in columns}
        kept["start_ns"] = kept["start_ns"] + 3_000 * one.rank
        # Each GPU has tuned its products for itself.
        names = (f"void gemv_kernel<{one.rank}>(float*)", *one.names[1:])
        members.append(replace(one, pid=4711, names=names, payload=None, drawn=None, **kept))
    path = run_of(tmp_path / "split.sqlite", members, one_process=True)
    trace = RunTrace(path, open_run(path))
    assert trace.ranks == ()
    assert trace.no_ranks == {"torch": "rank 0 · GPU 0 ran no collective"}
    (skew,) = trace.skews
    assert [line.device for line in skew.ranks] == [0, 1]
    assert skew.ranks[1].behind_us == pytest.approx(3.0, abs=0.3)
    assert skew.notes == ()
