"""The file between a traced worker (writes) and its parent (reads): frames. Standard library only.

A frame is a 16-byte header (magic, u16 kind, u16 format version, u64 payload length) and its
payload, padded to 8 bytes. Kinds: ``LAYOUT``, ``MARK`` and ``NAMES`` hold one JSON object,
``RECORDS`` the bytes of one CUPTI buffer. The recorder of ``llmprof record`` (``llmprof/native``)
writes ``PROCESS``, ``DEVICES`` and ``ERROR`` besides, JSON objects too, and ``NVTX``: events of 40
bytes with their text. A killed process leaves a cut last frame: everything before it, and the whole
records inside it, stay readable.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"LPSP"
FORMAT = 1
LAYOUT, RECORDS, MARK, NAMES = 1, 2, 3, 4
PROCESS, NVTX, DEVICES, ERROR = 5, 6, 7, 8
HEADER = struct.Struct("<4sHHQ")
MAX_PAYLOAD = 64 << 20
"""A longer frame is a broken file, not a buffer; it bounds the reader's memory."""


def _padding(length: int) -> int:
    return -length % 8


class SpoolWriter:
    """Appends whole frames, from any thread. Raises ``OSError`` (disk full, no such folder)."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        # Reentrant: should a collection inside ``write`` free GPU memory, CUPTI may hand a buffer
        # over on this very thread. A torn frame is then reported; a deadlock would not be.
        self._lock = threading.RLock()
        self.size = 0
        """Bytes written."""

    def write(self, kind: int, payload: bytes | memoryview) -> int:
        """Append one frame (one ``writev``, the GIL is released in it); its payload's offset."""
        length = len(payload)
        if length > MAX_PAYLOAD:
            raise OSError(f"a frame of {length} bytes is over the limit of {MAX_PAYLOAD}")
        parts: list[bytes | memoryview] = [
            HEADER.pack(MAGIC, kind, FORMAT, length),
            payload,
            bytes(_padding(length)),
        ]
        total = HEADER.size + length + _padding(length)
        with self._lock:
            start = self.size + HEADER.size
            done = os.writev(self._fd, parts)
            self.size += done
            if done < total:  # a nearly full disk, or a signal
                rest = memoryview(b"".join(parts))[done:]
                while rest:
                    done = os.write(self._fd, rest)
                    self.size += done
                    rest = rest[done:]
        return start

    def write_json(self, kind: int, value: dict[str, Any]) -> None:
        self.write(kind, json.dumps(value, separators=(",", ":")).encode())

    def read_back(self, offset: int, length: int) -> bytes:
        """A payload written earlier (from the page cache, mostly)."""
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Frame:
    """Where a payload lies: ``length`` is what is there, less than written if ``cut``."""

    kind: int
    offset: int
    length: int
    cut: bool = False


class SpoolReader(AbstractContextManager["SpoolReader"]):
    """Reads headers, and payloads on demand: memory never exceeds one frame.

    Raises ``OSError`` where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.lost = ""
        """Why ``frames`` ended before the end of the file."""

    def frames(self) -> Iterator[Frame]:
        """All frames from the start; the last may be cut. Stops at the first broken header."""
        self.lost = ""
        at, size = 0, os.fstat(self._fd).st_size
        while at < size:
            header = os.pread(self._fd, HEADER.size, at)
            if len(header) < HEADER.size:
                self.lost = f"spool cut inside a header at byte {at}"
                return
            magic, kind, version, length = HEADER.unpack(header)
            if magic != MAGIC or version != FORMAT or length > MAX_PAYLOAD:
                self.lost = f"spool broken at byte {at}: {size - at} bytes not read"
                return
            start = at + HEADER.size
            if start + length > size:
                self.lost = f"spool cut at byte {size}: {start + length - size} bytes are missing"
                yield Frame(kind, start, size - start, cut=True)
                return
            yield Frame(kind, start, length)
            at = start + length + _padding(length)

    def payload(self, frame: Frame) -> bytes:
        return os.pread(self._fd, frame.length, frame.offset)

    def json(self, frame: Frame) -> dict[str, Any] | None:
        """The frame's object; ``None`` where it is cut or corrupt."""
        try:
            value = json.loads(self.payload(frame))
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __exit__(self, *_why: object) -> None:
        self.close()
