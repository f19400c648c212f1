"""Payloads of NVTX ranges: what a recorded program attached, by the schemas that it registered."""

from __future__ import annotations

import json
import struct

from hypothesis import given
from hypothesis import strategies as st

from llmprof.recording.spooled.payloads import Schemas
from llmprof.recording.spooled.ranges import RangeReader

ALL_REDUCE = (
    "0 24\n0 18 0 0 NCCL communicator ID\n8 22 0 0 Message size [bytes]\n16 16777240 0 0 Op\n"
)
COMM = (
    "0 24\n0 18 0 0 NCCL communicator ID\n8 5 0 0 No. of ranks\n12 5 0 0 Rank\n"
    "16 5 0 0 CUDA device\n"
)
HASH = 0xABCDEF0123456789
DOMAIN = 0x1000


def event(kind: str, number: int = 0, text: bytes = b"", time_ns: int = 10, tid: int = 7) -> bytes:
    head = struct.pack("<QQQQIHcB", time_ns, number, DOMAIN, 0, tid, len(text), kind.encode(), 0)
    return head + text + bytes(-len(text) % 8)


def all_reduce(size: int) -> bytes:
    return struct.pack("<QQi4x", HASH, size, 0)


def test_a_push_and_a_pop_bring_their_payloads() -> None:
    reader = RangeReader(4711)
    frame = b"".join(
        [
            event("D", text=b"NCCL"),
            event("K", 5, ALL_REDUCE.encode()),
            event("K", 6, COMM.encode()),
            event("(", text=b"ncclCommInitRank", time_ns=20),
            event("P", 6, struct.pack("<Qiii4x", HASH, 4, 2, 1), time_ns=29),
            event(")", time_ns=30),
            event("P", 5, all_reduce(8192), time_ns=40),
            event("(", text=b"ncclAllReduce", time_ns=40),
            event(")", time_ns=50),
            event("(", text=b"ncclGroupEnd", time_ns=60),
            event(")", time_ns=70),
        ]
    )
    comm, reduce, group = reader.read(frame)
    assert json.loads(comm.values) == {
        "NCCL communicator ID": HASH, "No. of ranks": 4, "Rank": 2, "CUDA device": 1,
    }  # fmt: skip
    assert json.loads(reduce.values) == {"NCCL communicator ID": HASH, "Message size [bytes]": 8192}
    assert (reduce.text, reduce.domain, reduce.start_ns, reduce.end_ns) == (
        "ncclAllReduce", "NCCL", 40, 50,
    )  # fmt: skip
    assert group.values == ""


def test_a_payload_belongs_to_its_own_thread() -> None:
    reader = RangeReader(1)
    frame = b"".join(
        [
            event("K", 5, ALL_REDUCE.encode()),
            event("P", 5, all_reduce(16), tid=1),
            event("(", text=b"other", tid=2),
            event("(", text=b"mine", tid=1),
            event(")", tid=2),
            event(")", tid=1),
        ]
    )
    other, mine = reader.read(frame)
    assert (other.values, bool(mine.values)) == ("", True)


def test_ranges_without_an_end_are_named() -> None:
    reader = RangeReader(1)
    frame = [
        event("(", text=b"step"),
        event("S", 3, b"ncclCommAbort"),
        event("S", 4, b"ncclCommAbort"),
    ]
    assert reader.read(b"".join(frame)) == []
    assert (reader.open, reader.open_words) == (3, "ncclCommAbort (2), step")


def test_offsets_that_are_not_given_follow_alignment() -> None:
    schemas = Schemas()
    schemas.learn(1, 2, "0 0\n0 11 0 0 a\n0 18 0 0 b\n0 5 0 0 c\n")
    assert json.loads(schemas.json(1, 2, struct.pack("<b7xqi", -3, 9, -5))) == {
        "a": -3, "b": 9, "c": -5,
    }  # fmt: skip


def test_what_is_unknown_or_torn_is_left_out() -> None:
    schemas = Schemas()
    assert schemas.json(1, 2, b"12345678") == ""
    schemas.learn(1, 2, ALL_REDUCE)
    assert json.loads(schemas.json(1, 2, struct.pack("<Q", 3))) == {"NCCL communicator ID": 3}
    schemas.learn(1, 3, "0 8\n0 999 0 0 odd\n0 18 0 0 behind it\n")
    assert schemas.json(1, 3, bytes(64)) == ""
    schemas.learn(1, 4, "0 8\n0 5 16 4 an array\n32 5 0 0 plain\n")
    assert json.loads(schemas.json(1, 4, bytes(64))) == {"plain": 0}


@given(st.text(), st.binary(max_size=64))
def test_no_text_and_no_bytes_do_harm(text: str, blob: bytes) -> None:
    schemas = Schemas()
    schemas.learn(0, 0, text)
    found = schemas.json(0, 0, blob)
    assert found == "" or isinstance(json.loads(found), dict)


@given(st.binary(max_size=400))
def test_frames_of_any_bytes_do_no_harm(payload: bytes) -> None:
    RangeReader(1).read(payload)
