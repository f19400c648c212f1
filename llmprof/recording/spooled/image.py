"""One recorded process image: frames of its spool in, rows of the run file out."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.ingest.activities import ActivityRows
from llmprof.plaintext import one_line
from llmprof.recording.spooled.call_ids import CallIds
from llmprof.recording.spooled.devices import MOST_DEVICES, DeviceMap
from llmprof.recording.spooled.ranges import FAR_NS, RangeReader
from llmprof.records import NvtxEvent
from llmprof.records.processes import RecordedProcess
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.decode import Records, decode_buffer
from llmprof.tracers.cupti.layout import Layout
from llmprof.tracers.cupti.times import TimeCheck

FLUSH_BYTES = 4 << 20
"""Raw records that wait before they are decoded together: frames of 20 ms are small."""
DECODE_BYTES = 4 << 20
"""Of records that are decoded as one; as much again is in use meanwhile."""
FLUSH_NS = 500_000_000
DEVICES_WAIT_NS = 2_000_000_000
"""Records wait so long to be told which GPUs the process means."""
MOST_WAITING = 64 << 20
_STUCK = "the window was closed within a call of a thread, and its launches have one number since"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What of a process is in the run file. Replaced, never changed: what a batch that failed
    counted is taken back."""

    kernels: int = 0
    copies: int = 0
    calls: int = 0
    ranges: int = 0
    first_ns: int | None = None
    last_ns: int = 0


class Image:
    """Grows with each frame; owns no file.

    Args:
        process: its number (``schema.process_number``).
        new_engine: called once, at its first work on a GPU; gives the engine's number.
    """

    def __init__(
        self,
        writer: RunFileWriter,
        process: int,
        devices: DeviceMap,
        gpus: frozenset[int] | None,
        new_engine: Callable[[Image], int],
    ) -> None:
        self.process = process
        self.facts: dict[str, Any] = {}
        self.errors: list[dict[str, Any]] = []
        self.lost: list[str] = []
        self._times = TimeCheck()
        self.ranges = RangeReader(process)
        self.engine_id: int | None = None
        self.counts = Counts()
        self.dropped = 0
        self.ended = False
        self.devices: set[int] = set()
        """GPU numbers that it worked on."""
        self.unwanted: set[int] = set()
        """Of those that were left out."""
        self.kernel_names: dict[int, str] = {}
        self.api_names: dict[tuple[int, int], str] = {}
        self._writer = writer
        self._device_map = devices
        self._gpus = gpus
        self._new_engine = new_engine
        self._rows: ActivityRows | None = None
        self._layout: Layout | None = None
        self._numbers: NDArray[np.int64] | None = None
        self._offset_ns = 0
        self._call_ids = CallIds()
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._raw_since = 0
        self._events: list[NvtxEvent] = []

    @property
    def losses(self) -> list[str]:
        """What of its records is not in the run file, and why."""
        dropped = [f"CUPTI dropped {self.dropped} records"] if self.dropped else []
        stuck = self._call_ids.stuck
        unknown = [f"{stuck} kernels and copies have no call: {_STUCK}"] if stuck else []
        return [*dict.fromkeys(self.lost), *dropped, *unknown, *self._times.texts()]

    # -- frames in ---------------------------------------------------------------------------

    def take(self, kind: int, payload: bytes) -> None:
        """One frame. Never raises on what a program may have written."""
        if kind == spool.RECORDS:
            if not self._raw:
                self._raw_since = time.monotonic_ns()
            self._raw.append(payload)
            self._raw_bytes += len(payload)
            return
        if kind == spool.NVTX:
            self._events += self.ranges.read(payload)
            return
        try:
            value = json.loads(payload)
            if not isinstance(value, dict):
                raise ValueError("not one JSON object")
            self._take_object(kind, value)
        except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError,
                RecursionError) as why:  # fmt: skip
            self.lost.append(f"a frame of kind {kind} is corrupt: {one_line(repr(why), 80)}")

    def _take_object(self, kind: int, value: dict[str, Any]) -> None:
        if kind == spool.NAMES:
            if any(self.kernel_names.get(int(p), n) != n for p, n in value["kernels"].items()):
                self._decode()  # a pointer that means another kernel from here on
            self.kernel_names.update({int(p): str(n) for p, n in value["kernels"].items()})
            for api, names in value["api"].items():
                self.api_names.update({(int(api), int(i)): str(n) for i, n in names.items()})
        elif kind == spool.LAYOUT:
            self._layout = Layout.from_dict(value)
        elif kind == spool.MARK:
            dropped, monotonic, cupti = (
                int(value[key]) for key in ("dropped", "monotonic_ns", "cupti_ns")
            )
            if not (0 <= dropped < 1 << 40 and 0 <= monotonic < FAR_NS and 0 <= cupti < FAR_NS):
                raise ValueError("a number is out of range")
            self.dropped += dropped
            self.ended = value["where"] == "end"
            if self._clock_is_cuptis:
                self._offset_ns = monotonic - cupti
        elif kind == spool.PROCESS:
            if "library" in value and "library" in self.facts:
                self._decode()
                self._call_ids.new_session()
            self.facts.update(value)
        elif kind == spool.DEVICES:
            self._numbers = np.arange(MOST_DEVICES, dtype=np.int64)
            for ordinal, number in self._device_map.numbers(value["devices"]).items():
                self._numbers[ordinal] = number
            self.facts["devices"] = value["devices"]
        elif kind == spool.ERROR:
            self.errors.append(value)

    @property
    def _clock_is_cuptis(self) -> bool:
        """The timestamp callback was refused: times are on CUPTI's own clock."""
        return any(e.get("what") == "cuptiActivityRegisterTimestampCallback" for e in self.errors)

    def monotonic(self, cupti_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """``ingest.activities.Clock``: records are on CLOCK_MONOTONIC as they come."""
        return cupti_ns + np.int64(self._offset_ns) if self._offset_ns else cupti_ns

    # -- rows out ----------------------------------------------------------------------------

    def flush(self, final: bool = False) -> None:
        """Write what has waited long enough, or all of it.

        Raises:
            RunFileError: the run file cannot be written.
        """
        waited = time.monotonic_ns() - self._raw_since
        if self._raw:
            unknown = self._numbers is None and waited < DEVICES_WAIT_NS
            due = self._raw_bytes >= FLUSH_BYTES or waited >= FLUSH_NS
            if final or (due and not unknown) or self._raw_bytes >= MOST_WAITING:
                self._decode()
        if self._events:
            self._add(ranges=len(self._events))
            self._saw(self._events[0].start_ns, max(e.end_ns for e in self._events))
            self._writer.put_nvtx(self._events)
            self._events = []

    def drop(self) -> None:
        """Forget what waits to be written."""
        self._raw, self._raw_bytes, self._events = [], 0, []

    def _decode(self) -> None:
        if self._layout is None:
            if self._raw:
                self.lost.append(f"{self._raw_bytes} bytes of records without their layout")
                self._raw, self._raw_bytes = [], 0
            return
        raw, self._raw, self._raw_bytes = self._raw, [], 0
        at = 0
        while at < len(raw):
            # Buffers hold whole records, so several can be decoded as one.
            taken, size = at, 0
            while at < len(raw) and (size == 0 or size + len(raw[at]) <= DECODE_BYTES):
                size += len(raw[at])
                at += 1
            self._put(decode_buffer(b"".join(raw[taken:at]), self._layout))

    def _put(self, records: Records) -> None:
        self.lost += records.lost
        records = self._times.of(self._call_ids.of(records))
        if self._gpus is not None or self._numbers is not None:
            records = self._on_gpus(records)
        if not len(records.kernels) + len(records.memcpy) + len(records.memset):
            if self._rows is None:
                return  # calls of a process that never used a GPU
        elif self._rows is None:
            self.engine_id = self._new_engine(self)
            self._rows = ActivityRows(self._writer, self.engine_id, self.process)
        assert self._rows is not None
        for rows in (records.kernels, records.memcpy, records.memset):
            if len(rows):
                self._saw(int(rows["start"].min()), int(rows["end"].max()))
                device = rows["device"]
                least, most = int(device.min()), int(device.max())
                seen = [least] if least == most else np.unique(device).tolist()
                self.devices.update(seen)
        self._rows.put(self, self, records)
        self._add(
            kernels=len(records.kernels),
            copies=len(records.memcpy) + len(records.memset),
            calls=len(records.api),
        )

    def _on_gpus(self, records: Records) -> Records:
        """With the run's numbers of GPUs, and without work on GPUs that are not wanted."""
        changed = {}
        for name in ("kernels", "memcpy", "memset"):
            rows = getattr(records, name)
            if not len(rows):
                continue
            device = rows["device"].astype(np.int64)
            if self._numbers is not None:
                device = self._numbers[np.minimum(device, MOST_DEVICES - 1)]
                if (device != rows["device"]).any():
                    rows = rows.copy()
                    rows["device"] = device
            if self._gpus is not None:
                wanted = np.isin(device, list(self._gpus))
                self.unwanted.update(np.unique(device[~wanted]).tolist())
                rows = rows[wanted]
            changed[name] = rows
        return dataclasses.replace(records, **changed)

    def _saw(self, start_ns: int, end_ns: int) -> None:
        start_ns, end_ns = start_ns + self._offset_ns, end_ns + self._offset_ns
        first_ns, last_ns = self.counts.first_ns, self.counts.last_ns
        self.counts = dataclasses.replace(
            self.counts,
            first_ns=start_ns if first_ns is None else min(first_ns, start_ns),
            last_ns=max(last_ns, end_ns),
        )

    def _add(self, **more: int) -> None:
        found = {name: getattr(self.counts, name) + count for name, count in more.items()}
        self.counts = dataclasses.replace(self.counts, **found)

    # -- what is known of it -----------------------------------------------------------------

    @property
    def kernels(self) -> int:
        return self.counts.kernels

    @property
    def copies(self) -> int:
        return self.counts.copies

    @property
    def calls(self) -> int:
        return self.counts.calls

    @property
    def range_count(self) -> int:
        return self.counts.ranges

    @property
    def worked(self) -> bool:
        return bool(self.kernels or self.copies)

    @property
    def loaded_cuda(self) -> bool:
        return "cuda" in self.facts

    @property
    def pid(self) -> int:
        return self.process & 0xFFFFFF

    @property
    def command(self) -> list[str]:
        words = str(self.facts.get("cmdline", "")).split("\0")
        return words[:-1] if words and not words[-1] else words

    @property
    def rank(self) -> int | None:
        return self._number("RANK")

    def _number(self, variable: str) -> int | None:
        """An environment variable that is a small number."""
        text = str(self.facts.get(variable, ""))
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else None

    @property
    def name(self) -> str:
        """The script or module that an interpreter runs, else the program's file name."""
        executable = PurePath(str(self.facts.get("exe", ""))).name
        return command_name(self.command) or one_line(executable, 40) or "?"

    def record(self, label: str) -> RecordedProcess:
        started = _integer(self.facts.get("monotonic_ns"))
        first = self.counts.first_ns if self.counts.first_ns is not None else started
        named = self.facts.get("devices")
        uuids = {
            str(row.get("ordinal")): one_line(str(row.get("uuid", "")), 40)
            for row in (named if isinstance(named, list) else [])
            if isinstance(row, dict)
        }
        return RecordedProcess(
            process=self.process,
            engine_id=self.engine_id,
            pid=self.pid,
            parent=_integer(self.facts.get("ppid")),
            label=label,
            executable=one_line(str(self.facts.get("exe", ""))),
            command=[one_line(word, 400) for word in self.command[:200]],
            rank=self.rank,
            local_rank=self._number("LOCAL_RANK"),
            world_size=self._number("WORLD_SIZE"),
            started_ns=started,
            first_ns=first,
            last_ns=max(first, self.counts.last_ns),
            kernels=self.kernels,
            copies=self.copies,
            calls=self.calls,
            ranges=self.range_count,
            dropped=self.dropped,
            ended=self.ended,
            library=one_line(str(self.facts.get("library", ""))),
            devices=uuids,
        )


def _integer(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


_INTERPRETER = re.compile(r"(python|pypy)[\d.]*$")


def command_name(words: list[str]) -> str:
    """``generate.py`` of ``python -u generate.py --x``, ``vllm.entrypoints`` of ``python -m …``.

    A process that renamed itself has one word with spaces: its first part counts.
    """
    if not words:
        return ""
    own = PurePath(words[0].split(" ")[0] if len(words) == 1 else words[0]).name
    if not _INTERPRETER.match(own):
        return one_line(own, 40)
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return one_line(next(rest, own), 40)
        if word == "-c":
            return one_line(own, 40)
        if word in ("-W", "-X"):
            next(rest, None)
        elif not word.startswith("-"):
            return one_line(PurePath(word).name, 40)
    return one_line(own, 40)
