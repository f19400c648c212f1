"""Frames between parent and worker, over two pipes. Standard library only.

A frame is a 5-byte header (little-endian u32 payload length, u8 kind) and its payload: kind 0 is
one JSON object, kind 1 is raw bytes that belong to the JSON object before it. JSON and not pickle:
nothing that a worker sends is ever executed in the parent.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

_HEADER = struct.Struct("<IB")
_JSON, _BYTES = 0, 1
MAX_FRAME = 1 << 30
"""A longer length is a broken stream, not a message."""


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel:
    """One side of the conversation; not for use by several threads."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._buffer = bytearray()

    def send(self, message: dict[str, Any], blob: bytes | memoryview | None = None) -> None:
        """Send a JSON object and, with it, raw bytes.

        Raises:
            ChannelClosed: nobody reads any more.
        """
        if blob is not None:
            message = {**message, "blob": True}
        payload = json.dumps(message, separators=(",", ":")).encode()
        self._write(_HEADER.pack(len(payload), _JSON) + payload)
        if blob is not None:
            self._write(_HEADER.pack(len(blob), _BYTES))
            self._write(blob)

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], bytes] | None:
        """The next message and its bytes (empty where it has none).

        ``None`` when nothing came within ``timeout_s``; a message half here stays buffered.

        Raises:
            ChannelClosed: end of stream or a frame that is none.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self._parse()
            if found is not None:
                return found
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read_fd], [], [], wait)
            if not ready:
                return None
            chunk = os.read(self._read_fd, 1 << 20)
            if not chunk:
                raise ChannelClosed("end of stream")
            self._buffer += chunk

    def close(self) -> None:
        for fd in (self._read_fd, self._write_fd):
            try:
                os.close(fd)
            except OSError:
                pass  # closed already: closing twice is no error here

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[os.write(self._write_fd, view) :]
        except OSError as why:
            raise ChannelClosed(str(why)) from None

    def _frame_at(self, offset: int) -> tuple[int, int, int] | None:
        """(kind, payload start, payload end) of the frame at ``offset``, if it is all here."""
        if len(self._buffer) < offset + _HEADER.size:
            return None
        length, kind = _HEADER.unpack_from(self._buffer, offset)
        if length > MAX_FRAME or kind not in (_JSON, _BYTES):
            raise ChannelClosed("broken frame")
        start = offset + _HEADER.size
        return (kind, start, start + length) if len(self._buffer) >= start + length else None

    def _parse(self) -> tuple[dict[str, Any], bytes] | None:
        head = self._frame_at(0)
        if head is None:
            return None
        kind, start, end = head
        try:
            message = json.loads(bytes(self._buffer[start:end])) if kind == _JSON else None
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ChannelClosed("broken frame")
        blob = b""
        if message.get("blob"):
            tail = self._frame_at(end)
            if tail is None:
                return None
            _, start, end = tail
            blob = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return message, blob
