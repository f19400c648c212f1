"""NVTX events of a recorded process to ranges."""

from __future__ import annotations

import re
import struct
from collections import Counter

from llmprof.plaintext import one_line
from llmprof.recording.spooled.payloads import Schemas
from llmprof.records import NvtxEvent

_EVENT = struct.Struct("<QQQQIHcB")
"""``struct event`` of the recorder: time, id, domain, payload, thread, text length, two types."""
_NUMBER = re.compile(r"\d+")
FAR_NS = 1 << 62
"""146 years: no clock of a recorded process is there. SQLite's integers end at twice that."""
SHOWN = 3
"""Texts of ranges without an end that are named."""
MAX_SHAPES = 4096
"""Texts with numbers left out that are counted; a program could make new ones without end."""


class RangeReader:
    """Pairs pushes with pops (a thread and domain has a stack) and starts with ends.

    Ranges that are open when a process dies have no end and are counted only.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._stacks: dict[tuple[int, int], list[tuple[int, str, str]]] = {}
        self._started: dict[int, tuple[int, int, int, str, str]] = {}
        self._schemas = Schemas()
        self._attached: dict[int, str] = {}
        """Thread → what belongs to its next event."""
        self._domains: dict[int, str] = {0: ""}
        self.thread_names: dict[int, str] = {}
        self.marks = 0
        self.shapes: dict[str, int] = {}
        """Text with ``*`` for each number → ranges that ended."""

    @property
    def open(self) -> int:
        return sum(map(len, self._stacks.values())) + len(self._started)

    @property
    def open_words(self) -> str:
        """The texts of those, most frequent first: ``ncclAllReduce, step 3 (2)``."""
        texts = [text for stack in self._stacks.values() for _, text, _ in stack]
        texts += [text for _, _, _, text, _ in self._started.values()]
        found = Counter(one_line(text, 40) or "(no text)" for text in texts).most_common(SHOWN + 1)
        words = [text if count == 1 else f"{text} ({count})" for text, count in found[:SHOWN]]
        return ", ".join(words) + (", …" if len(found) > SHOWN else "")

    def read(self, payload: bytes) -> list[NvtxEvent]:
        """Ranges that ended in this frame. What is torn or unknown is left out."""
        ended: list[NvtxEvent] = []
        at, unpack, size = 0, _EVENT.unpack_from, _EVENT.size
        while at + size <= len(payload):
            time_ns, number, domain, _, tid, length, kind, _ = unpack(payload, at)
            text_at = at + size
            at = text_at + (length + 7 & ~7)
            if time_ns >= FAR_NS:
                continue
            if kind == b"P":
                blob = payload[text_at : text_at + length]
                self._attached[tid] = self._schemas.json(domain, number, blob)
                continue
            values = self._attached.pop(tid, "") if kind in b"()SEM" else ""
            if kind == b")":
                stack = self._stacks.get((tid, domain))
                if stack:
                    start, text, first = stack.pop()
                    self._end(ended, start, time_ns, domain, tid, text, values or first)
                continue
            if kind == b"E":
                found = self._started.pop(number, None)
                if found is not None:
                    start, domain, tid, text, first = found
                    self._end(ended, start, time_ns, domain, tid, text, values or first)
                continue
            text = payload[text_at : text_at + length].decode(errors="replace")
            if kind == b"(":
                self._stacks.setdefault((tid, domain), []).append((time_ns, text, values))
            elif kind == b"S":
                self._started[number] = time_ns, domain, tid, text, values
            elif kind == b"K":
                self._schemas.learn(domain, number, text)
            elif kind == b"D":
                self._domains[domain] = text
            elif kind == b"T":
                self.thread_names[number] = text
            elif kind == b"M":
                self.marks += 1
        return ended

    def _end(
        self,
        ended: list[NvtxEvent],
        start: int,
        end: int,
        domain: int,
        tid: int,
        text: str,
        values: str,
    ) -> None:
        name = self._domains.get(domain, f"domain {domain:#x}")
        ended.append(NvtxEvent(start, max(start, end), text, self._process, tid, name, values))
        shape = _NUMBER.sub("*", text)
        if shape in self.shapes or len(self.shapes) < MAX_SHAPES:
            self.shapes[shape] = self.shapes.get(shape, 0) + 1
