"""Files of torch.profiler of all ranks: what NCCL's kernels say about themselves is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kineto_factory as kineto
import pytest

from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.traces.kineto.fields import collective_bytes
from llmprof.traces.opened import readable_all

STEPS, WORLD = 12, 4
SIZES = ((5120, "Half"), (64, "Float"), (5120, "Half"))
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_f16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def files(folder: Path, late: int) -> list[Path]:
    """Four ranks, all-reduces of two sizes by one kernel; one rank comes 0.2 ms late."""
    paths = []
    for rank in range(WORLD):
        events: list[Any] = []
        for number in range(STEPS):
            events += kineto.step(number, 1000.0 * number)
            start = kineto.BASE_US + 1000.0 * number
            for i, (count, kind) in enumerate(SIZES):
                begin = start + 120 + 20 * i
                end = start + 330 + 20 * i
                if i == 0 and rank == late:
                    begin += 200
                elif i:
                    begin = end - 8
                events.append(
                    kineto.event(
                        "kernel", ALL_REDUCE, begin, end - begin, 0, 7, device=0, stream=7,
                        correlation=10**6 + 10 * number + i, **{
                            "Collective name": "allreduce", "In msg nelems": count,
                            "Out msg nelems": count, "Group size": WORLD, "dtype": kind,
                            "Process Group Ranks": "[0, 1, 2, 3]"},
                    )
                )  # fmt: skip
        world = {"backend": "nccl", "rank": rank, "world_size": WORLD}
        document = kineto.document(events, distributedInfo=world)
        paths.append(kineto.write(folder / f"rank{rank}.json", document))
    return paths


@pytest.fixture
def group(tmp_path: Path) -> RanksReport:
    (path,) = readable_all(files(tmp_path, 2))
    data = open_run(path)
    trace = RunTrace(Path(data.path), data)
    assert trace.no_ranks == {}
    (found,) = trace.ranks
    return found


def test_collectives_are_told_apart_by_size_and_have_bandwidths(group: RanksReport) -> None:
    assert [line.rank for line in group.ranks] == [0, 1, 2, 3]
    sizes = {one.bytes: one for one in group.collectives}
    assert set(sizes) == {10_240, 256}
    assert (sizes[10_240].per_step, sizes[256].per_step) == (2.0, 1.0)
    small = sizes[256]
    assert small.transfer_us == pytest.approx(8.0, abs=0.1)
    assert not isinstance(small.bus_gb_s, Unavailable)
    assert small.bus_gb_s == pytest.approx(256 / 8_000 * 2 * 3 / 4, rel=0.02)


def test_the_late_rank_is_named(group: RanksReport) -> None:
    assert group.reason is not None
    assert group.reason.rank == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"In msg nelems": 10, "Out msg nelems": 40, "dtype": "BFloat16"}, 80),
        ({"In msg nelems": 10, "Out msg nelems": 10, "dtype": "Byte"}, 10),
        ({"In msg nelems": 10, "dtype": "Quaternion"}, None),
        ({"In msg nelems": 0, "Out msg nelems": 0, "dtype": "Float"}, None),
        ({"In msg nelems": 10**30, "dtype": "Float"}, None),
        ({"In msg nelems": "many", "dtype": "Float"}, None),
        ({}, None),
    ],
)
def test_bytes_are_those_of_nccl_tests(arguments: dict[str, Any], expected: int | None) -> None:
    assert collective_bytes(arguments) == expected
