"""Times of CUPTI's records that cannot be true are counted, left out and told."""

from __future__ import annotations

from collections import Counter

import numpy as np
from cupti_synthetic import CUDA_13_0, layout_of, make_buffer
from hypothesis import given
from hypothesis import strategies as st

from llmprof.tracers.cupti.decode import Records, decode_buffer, record_dtype
from llmprof.tracers.cupti.layout import (
    API_FIELDS,
    CONCURRENT_KERNEL,
    KERNEL_FIELDS,
    MEMCPY_FIELDS,
    MEMSET_FIELDS,
    RUNTIME,
    SYNC_FIELDS,
)
from llmprof.tracers.cupti.times import AROUND_NS, BACK_NS, TimeCheck

T0 = 1_795_390_354_287_184_548


def empty(fields: tuple, size: int = 256) -> np.ndarray:
    return np.zeros(0, record_dtype(fields, size))


def kernels(
    start: list[int], length: int = 1000, first: int = 1, stream: int = 7, graph: int = 0
) -> Records:
    """Kernels of one stream in the order of launch."""
    rows = np.zeros(len(start), record_dtype(KERNEL_FIELDS, 256))
    rows["start"] = start
    rows["end"] = rows["start"] + length
    rows["correlation"] = np.arange(first, first + len(start))
    rows["stream"], rows["graph_node"] = stream, graph
    return Records(
        rows, empty(MEMCPY_FIELDS), empty(MEMSET_FIELDS), empty(API_FIELDS), empty(SYNC_FIELDS)
    )


def test_zero_negative_and_reversed_times_are_counted() -> None:
    layout = layout_of(CUDA_13_0)
    data = bytearray(make_buffer([RUNTIME] + [CONCURRENT_KERNEL] * 4, layout))
    size = layout.sizes[CONCURRENT_KERNEL]
    for nth, (start, end) in enumerate(((0, 0), (-5, 10), (T0, T0 - 1))):
        at = 40 + nth * size + 16
        data[at : at + 8] = start.to_bytes(8, "little", signed=True)
        data[at + 8 : at + 16] = end.to_bytes(8, "little", signed=True)
    check = TimeCheck()
    found = check.of(decode_buffer(bytes(data), layout))
    assert len(found.kernels) == 1 and check.untimed == 3
    assert check.texts() == [
        "3 records of GPU work have no valid time (zero, negative, or an end before the start):"
        " left out"
    ]


def test_records_far_from_their_round_are_left_out() -> None:
    check = TimeCheck(T0, T0 + 10**9)
    times = [T0 + 5, T0 - AROUND_NS - 1, T0 + 10**9 + AROUND_NS, T0 + 10**6]
    found = check.of(kernels(sorted(times)))
    assert found.kernels["start"].tolist() == [T0 + 5, T0 + 10**6]
    assert check.outside == 2 and check.backward == 0


def test_a_clock_that_goes_back_is_seen_also_over_buffers() -> None:
    """20 kernels of 1 ms, one behind the other; then the clock is 8 ms behind."""
    step = 1_000_000
    check = TimeCheck()
    first = check.of(kernels([T0 + i * step for i in range(20)], step - 10))
    again = check.of(kernels([T0 + (12 + i) * step for i in range(20)], step - 10, first=21))
    assert len(first.kernels) == 20
    # Starts at 12 to 17 ms lie more than 1 ms before the latest one, at 19 ms.
    assert check.backward == 6 and len(again.kernels) == 14
    assert "go back in time" in check.texts()[0]


def test_order_is_a_streams_and_not_a_graphs() -> None:
    check = TimeCheck()
    check.of(kernels([T0 + 50 * BACK_NS], 10 * BACK_NS, first=9, stream=7))
    assert len(check.of(kernels([T0], first=10, stream=8)).kernels) == 1
    assert len(check.of(kernels([T0], first=11, stream=7, graph=3)).kernels) == 1
    # An older launch whose buffer came later.
    assert len(check.of(kernels([T0], first=3, stream=7)).kernels) == 1
    assert check.texts() == []


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), max_size=60),
    st.integers(1, 7),
)
def test_work_in_order_is_never_left_out(pairs: list[tuple[int, int]], parts: int) -> None:
    check, at, kept = TimeCheck(), T0, 0
    starts, ends = [], []
    for pause, length in pairs:
        starts.append(at + pause)
        at = starts[-1] + length
        ends.append(at)
    for part in np.array_split(np.arange(len(pairs)), parts):
        if len(part):
            found = kernels([starts[i] for i in part], first=int(part[0]) + 1)
            found.kernels["end"] = [ends[i] for i in part]
            kept += len(check.of(found).kernels)
    assert kept == len(pairs) and check.texts() == []


def test_calls_without_times_are_no_gpu_work() -> None:
    records = kernels([T0])
    records.untimed = Counter({RUNTIME: 3, CONCURRENT_KERNEL: 1})
    check = TimeCheck()
    check.of(records)
    assert check.untimed == 1
