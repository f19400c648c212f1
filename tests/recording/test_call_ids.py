"""Correlation ids of a recorded process, over sessions of CUPTI and launches that share one."""

from __future__ import annotations

import numpy as np

from llmprof.recording.spooled.call_ids import NO_CALL, CallIds
from llmprof.tracers.cupti.decode import Records

LAUNCH, GRAPH, GET_DEVICE, CU_LAUNCH = (5, 211), (5, 311), (5, 17), (4, 652)


def records(calls: list[tuple[tuple[int, int], int]], kernels: list[int]) -> Records:
    def rows(ids: list[int]) -> np.ndarray:
        found = np.zeros(len(ids), [("correlation", "<u4"), ("kind", "<u4"), ("cbid", "<u4")])
        found["correlation"] = ids
        return found

    api = rows([number for _, number in calls])
    api["kind"] = [kind for (kind, _), _ in calls]
    api["cbid"] = [cbid for (_, cbid), _ in calls]
    return Records(rows(kernels), rows([]), rows([]), api, rows([]))


def ids(found: Records) -> tuple[list[int], list[int]]:
    return found.api["correlation"].tolist(), found.kernels["correlation"].tolist()


def test_a_later_session_goes_on_counting() -> None:
    numbers = CallIds()
    assert ids(numbers.of(records([(LAUNCH, 1), (GRAPH, 2)], [1, 2, 2]))) == ([1, 2], [1, 2, 2])
    numbers.new_session()
    assert ids(numbers.of(records([(LAUNCH, 1)], [1]))) == ([3], [3])
    assert ids(numbers.of(records([(LAUNCH, 2)], [2]))) == ([4], [4])
    numbers.new_session()
    assert ids(numbers.of(records([(LAUNCH, 1)], []))) == ([5], [])
    assert numbers.stuck == 0


def test_launches_that_share_a_number_have_no_kernels() -> None:
    numbers = CallIds()
    first = [(GRAPH, 642), (LAUNCH, 700), (GRAPH, 642), (CU_LAUNCH, 701)]
    assert ids(numbers.of(records(first, [642, 642, 700, 701]))) == (
        [0, 700, 0, 701], [NO_CALL, NO_CALL, 700, 701]
    )  # fmt: skip
    assert ids(numbers.of(records([(GRAPH, 642)], [642, 702]))) == ([0], [NO_CALL, 702])
    assert numbers.stuck == 3


def test_one_call_of_the_runtime_may_be_many_of_the_driver() -> None:
    numbers = CallIds()
    calls = [
        ((4, 5), 7),
        ((4, 5), 7),
        (CU_LAUNCH, 7),
        (LAUNCH, 7),
        (GET_DEVICE, 8),
        (GET_DEVICE, 8),
    ]
    assert ids(numbers.of(records(calls, [7]))) == ([7, 7, 7, 7, 8, 8], [7])
    assert numbers.stuck == 0
