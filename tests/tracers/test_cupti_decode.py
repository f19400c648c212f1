"""Raw buffers and spool files to arrays: exact on whole data, calm on broken data."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cupti_synthetic import (
    CUDA_12_6,
    CUDA_13_0,
    CUDA_13_5,
    NAME_POINTERS,
    T0,
    layout_of,
    make_buffer,
    write_spool,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmprof.records import Unavailable
from llmprof.tracers.cupti import decode as cupti_decode
from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.decode import Trace, decode_buffer, record_offsets
from llmprof.tracers.cupti.layout import (
    CONCURRENT_KERNEL,
    DRIVER,
    MEMCPY,
    MEMCPY_PEER,
    MEMSET,
    RUNTIME,
    SYNCHRONIZATION,
    Layout,
    known_layout,
)

KINDS = (MEMCPY, MEMSET, CONCURRENT_KERNEL, DRIVER, RUNTIME, SYNCHRONIZATION)
VERSIONS = (CUDA_12_6, 28, CUDA_13_0, 130101, 130300, CUDA_13_5)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_comes_back_exactly(version: int) -> None:
    kinds = [KINDS[i] for i in np.random.default_rng(version).integers(0, len(KINDS), 3000)]
    found = decode_buffer(make_buffer(kinds, layout_of(version)), layout_of(version))
    count = Counter(kinds)
    assert len(found.kernels) == count[CONCURRENT_KERNEL]
    assert len(found.memcpy) == count[MEMCPY]
    assert len(found.memset) == count[MEMSET]
    assert len(found.api) == count[RUNTIME] + count[DRIVER]
    assert len(found.sync) == count[SYNCHRONIZATION]
    for rows, wanted in (
        (found.kernels, (CONCURRENT_KERNEL,)),
        (found.memcpy, (MEMCPY,)),
        (found.memset, (MEMSET,)),
        (found.sync, (SYNCHRONIZATION,)),
    ):
        number = np.flatnonzero(np.isin(kinds, wanted))
        assert (rows["correlation"] == number + 1).all()
        assert (rows["start"] == T0 + 1000 * number).all()
        assert (rows["end"] - rows["start"] == 100 + number % 7).all()
    assert set(found.kernels["name_ptr"].tolist()) == set(NAME_POINTERS)
    assert (found.kernels["grid_x"] == 3).all() and (found.kernels["registers"] == 32).all()
    assert sorted(found.api["correlation"].tolist()) == sorted(
        i + 1 for i, kind in enumerate(kinds) if kind in (RUNTIME, DRIVER)
    )
    assert found.lost == [] and not found.other


@pytest.mark.parametrize(
    "pattern", [(CONCURRENT_KERNEL,), (RUNTIME,), (RUNTIME, CONCURRENT_KERNEL)]
)
@pytest.mark.parametrize("window", [4096, 1 << 20])
def test_a_window_border_inside_a_record_loses_nothing(
    pattern: tuple[int, ...], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cupti_decode, "WINDOW", window)
    layout = layout_of(CUDA_13_0)
    kinds = list(pattern) * 500
    data = make_buffer(kinds, layout)
    offsets, seen, end = record_offsets(data, layout.sizes)
    steps = np.array([layout.sizes[kind] for kind in kinds])
    assert (offsets == np.cumsum(steps) - steps).all()
    assert seen.tolist() == kinds and end == len(data)


def reference_offsets(data: bytes, sizes: dict[int, int]) -> tuple[list[int], int]:
    """The same walk, one record at a time."""
    at, found = 0, []
    while at + 8 <= len(data):
        size = sizes.get(int.from_bytes(data[at : at + 4], "little"), 0)
        if not size or at + size > len(data) // 8 * 8:
            break
        found.append(at)
        at += size
    return found, at


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=40),
    cut=st.integers(0, 5000),
    noise=st.lists(st.tuples(st.integers(0, 8000), st.binary(min_size=1, max_size=9)), max_size=6),
)
def test_cut_and_corrupt_buffers_decode_as_far_as_the_chain_goes(
    kinds: list[int], cut: int, noise: list[tuple[int, bytes]]
) -> None:
    layout = layout_of(CUDA_13_0)
    data = bytearray(make_buffer(kinds, layout))
    for at, junk in noise:
        data[at : at + len(junk)] = junk[: max(0, len(data) - at)]
    raw = bytes(data[: max(0, len(data) - cut)] if cut else data)
    offsets, _, end = record_offsets(raw, layout.sizes)
    wanted, stop = reference_offsets(raw, dict(layout.sizes))
    assert offsets.tolist() == wanted and end == stop
    found = decode_buffer(raw, layout)
    rows = found.kernels, found.memcpy, found.memset, found.api, found.sync
    kept = sum(map(len, rows)) + sum(found.other.values()) + sum(found.untimed.values())
    assert kept <= len(wanted)
    assert (kept == len(wanted) and end == len(raw)) or found.lost


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=200),
    untimed=st.sets(st.integers(0, 199), max_size=3),
    far=st.one_of(st.none(), st.integers(0, 199)),
)
def test_records_without_times_or_far_in_time_are_found_among_the_others(
    kinds: list[int], untimed: set[int], far: int | None
) -> None:
    """The starts are looked for by times near the first record's."""
    layout = layout_of(CUDA_13_0)
    data = bytearray(make_buffer(kinds, layout))
    wanted, _ = reference_offsets(bytes(data), dict(layout.sizes))
    for number, (at, kind) in enumerate(zip(wanted, kinds, strict=True)):
        word = at + (8 if kind in (DRIVER, RUNTIME, SYNCHRONIZATION) else 16)
        if number in untimed:
            data[word : word + 16] = bytes(16)
        elif far is not None and number >= far:
            late = int.from_bytes(data[word : word + 8], "little") + 10**15
            data[word : word + 8] = late.to_bytes(8, "little")
    offsets, seen, end = record_offsets(bytes(data), layout.sizes)
    assert offsets.tolist() == wanted and seen.tolist() == kinds and end == len(data)


def test_unknown_kinds_and_records_without_times_are_named_not_guessed() -> None:
    layout = layout_of(CUDA_13_0)
    data = bytearray(make_buffer([RUNTIME, CONCURRENT_KERNEL, RUNTIME], layout))
    data[40 + 16 : 40 + 32] = bytes(16)  # start and end of the kernel: CUPTI was short of memory
    found = decode_buffer(bytes(data), layout)
    assert len(found.kernels) == 0 and len(found.api) == 2
    assert found.untimed == {CONCURRENT_KERNEL: 1} and found.lost == []
    peer = bytes(4).join([MEMCPY_PEER.to_bytes(4, "little"), bytes(88)])
    assert decode_buffer(peer, layout).other == {MEMCPY_PEER: 1}
    strange = make_buffer([RUNTIME], layout) + (900).to_bytes(8, "little") + bytes(64)
    assert decode_buffer(strange, layout).lost == [
        "72 bytes of a buffer not decoded, after a record of unknown kind 900"
    ]


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=60),
    without=st.sampled_from(KINDS),
)
@example(kinds=[RUNTIME, CONCURRENT_KERNEL, MEMCPY], without=MEMCPY)
def test_a_kind_whose_size_is_not_known_ends_the_buffer(kinds: list[int], without: int) -> None:
    """A spool whose sizes are damaged: what comes before is kept, the rest is named."""
    layout = layout_of(CUDA_13_0)
    data = make_buffer(kinds, layout)
    sizes = {kind: size for kind, size in layout.sizes.items() if kind != without}
    wanted, end_wanted = reference_offsets(data, sizes)
    offsets, _, end = record_offsets(data, sizes)
    assert offsets.tolist() == wanted and end == end_wanted
    found = decode_buffer(data, replace(layout, sizes=sizes))
    assert bool(found.lost) == (without in kinds)


def test_a_spool_gives_records_names_and_clock(tmp_path: Path) -> None:
    layout = layout_of(CUDA_13_0)
    buffers = [make_buffer([RUNTIME, CONCURRENT_KERNEL] * 50, layout) for _ in range(3)]
    write_spool(tmp_path / "s", buffers, layout, drift_ns=20_000)
    trace = Trace(tmp_path / "s")
    assert trace.layout == layout and trace.lost == []
    assert trace.kernel_names[NAME_POINTERS[1]] == "_Z1kernelv"
    assert trace.api_names[RUNTIME, 211] == "cudaLaunchKernel_v7000"
    assert sum(len(found.kernels) for found in trace.records(1)) == 150
    assert list(trace.records(2)) == []
    clock = trace.clock(1)
    assert not isinstance(clock, Unavailable) and clock.error_ns == 300
    times = np.array([T0, T0 + 500_010_000, T0 + 10**9 + 20_000])
    assert clock.monotonic(times).tolist() == [1_000, 1_000 + 500_000_000, 1_000 + 10**9]
    assert isinstance(trace.clock(2), Unavailable)
    trace.close()


@pytest.mark.parametrize("drift_ns", [-500_000_000, 500_000_000])
def test_readings_of_clocks_that_contradict_each_other_date_nothing(
    tmp_path: Path, drift_ns: int
) -> None:
    """A damaged reading would move every kernel; an honest clock drifts by parts in a million."""
    layout = layout_of(CUDA_13_0)
    buffers = [make_buffer([CONCURRENT_KERNEL], layout)]
    write_spool(tmp_path / "s", buffers, layout, drift_ns=drift_ns)
    trace = Trace(tmp_path / "s")
    clock = trace.clock(1)
    assert isinstance(clock, Unavailable) and "contradict each other" in clock.reason
    trace.close()


@pytest.fixture(scope="module")
def whole_spool(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("spool") / "s"
    layout = layout_of(CUDA_13_0)
    write_spool(path, [make_buffer([RUNTIME, CONCURRENT_KERNEL, MEMSET] * 4, layout)] * 2, layout)
    return path.read_bytes()


def kernels_in(path: Path) -> tuple[int, list[str]]:
    trace = Trace(path)
    count = sum(len(found.kernels) for found in trace.records())
    trace.close()
    return count, trace.lost


def test_a_spool_cut_at_any_byte_loses_only_its_tail(whole_spool: bytes, tmp_path: Path) -> None:
    path, before = tmp_path / "cut", 0
    for length in range(0, len(whole_spool) + 1, 7):
        path.write_bytes(whole_spool[:length])
        count, _ = kernels_in(path)
        assert count >= before  # more bytes never give fewer kernels
        before = count
    path.write_bytes(whole_spool)
    assert kernels_in(path) == (8, [])
    path.write_bytes(whole_spool[:-100])
    count, lost = kernels_in(path)
    assert count == 8 and any("cut" in text for text in lost)


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 4000), junk=st.binary(min_size=1, max_size=24))
def test_a_corrupt_spool_never_raises_nor_asks_for_much_memory(
    whole_spool: bytes, tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "corrupt"
    at %= len(whole_spool)
    path.write_bytes(whole_spool[:at] + junk + whole_spool[at + len(junk) :])
    count, _ = kernels_in(path)
    assert 0 <= count <= 8


def test_a_length_that_no_frame_has_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(spool.HEADER.pack(spool.MAGIC, spool.RECORDS, spool.FORMAT, 1 << 60))
    trace = Trace(path)
    assert trace.lost == ["spool broken at byte 0: 16 bytes not read"]
    assert isinstance(trace.layout, Unavailable) and list(trace.records()) == []


@pytest.mark.parametrize(
    "sizes", [{"10": 8}, {"10": 217}, {"10": 1 << 40}, {"-1": 16}, {"x": 8}, 3]
)
def test_a_layout_that_cannot_be_is_refused(sizes: object) -> None:
    with pytest.raises(ValueError):
        Layout.from_dict({"cupti_version": 1, "sizes": sizes})


def test_the_table_says_what_the_headers_say() -> None:
    """sizeof() of the structs of each toolkit, taken with gcc (see cupti_layout)."""
    sizes = {v: (known_layout(v) or Layout(0, {}, "table")).sizes for v in (18, 26, *VERSIONS)}
    kernel = [sizes[v][CONCURRENT_KERNEL] for v in (18, 24, 28, 130001, 130101, 130300, 130500)]
    assert kernel == [208, 208, 208, 216, 224, 232, 248]
    assert [sizes[v][MEMCPY] for v in (24, 28, 130001, 130500)] == [88, 96, 96, 112]
    assert [sizes[v][SYNCHRONIZATION] for v in (24, 28, 130001)] == [40, 56, 56]
    assert known_layout(130600) is None and known_layout(25) is None
