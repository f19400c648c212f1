"""Frames between parent and worker, and the shared stamps."""

from __future__ import annotations

import os
import struct
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.worker.stamps import HEADER, StampBoard


def pipe_channel() -> tuple[Channel, int]:
    """A channel to receive from, and the file descriptor to feed it with."""
    read_fd, write_fd = os.pipe()
    return Channel(read_fd, os.dup(write_fd)), write_fd


def frame(payload: bytes, kind: int = 0) -> bytes:
    return struct.pack("<IB", len(payload), kind) + payload


def test_message_and_blob_arrive_together() -> None:
    channel, _ = pipe_channel()
    channel.send({"is": "ops", "n": 1}, array("q", [1, 2, 3]).tobytes())
    channel.send({"is": "done"})
    message, blob = channel.receive(1.0) or ({}, b"")
    assert message["is"] == "ops"
    assert array("q", blob).tolist() == [1, 2, 3]
    assert channel.receive(1.0) == ({"is": "done"}, b"")


def test_nothing_within_the_timeout_is_none_and_half_a_message_is_kept() -> None:
    channel, feed = pipe_channel()
    whole = frame(b'{"is":"done"}')
    os.write(feed, whole[:7])
    assert channel.receive(0.01) is None
    os.write(feed, whole[7:])
    assert channel.receive(1.0) == ({"is": "done"}, b"")


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_closed_channel_or_a_wait_never_a_crash(noise: bytes) -> None:
    channel, feed = pipe_channel()
    os.write(feed, noise)
    begin = time.monotonic()
    try:
        for _ in range(50):
            if channel.receive(0) is None:
                break
    except ChannelClosed:
        pass
    finally:
        channel.close()
        os.close(feed)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "noise",
    [frame(b"[1]"), frame(b"{not json"), frame(b"{}", kind=9), struct.pack("<IB", 2**31, 0)],
)
def test_a_broken_frame_closes_the_channel(noise: bytes) -> None:
    channel, feed = pipe_channel()
    os.write(feed, noise)
    with pytest.raises(ChannelClosed):
        channel.receive(1.0)


def test_stamps_are_seen_from_the_other_side(tmp_path: Path) -> None:
    parent = StampBoard(tmp_path / "stamps", 4, create=True)
    worker = StampBoard(tmp_path / "stamps", 4, create=False)
    worker.slots[0], worker.slots[1], worker.slots[2] = 7, 100, 110
    worker.slots[HEADER], worker.slots[HEADER + 1] = 120, 130
    assert parent.read() == (7, 100, 110, array("q", [120, 130]))
    for i in range(2, 5):
        worker.slots[HEADER + i] = 130 + i
    assert len(parent.read()[3]) == 5
    worker.clear()
    assert parent.read() == (0, 0, 0, array("q"))
    worker.close()
    parent.close()
