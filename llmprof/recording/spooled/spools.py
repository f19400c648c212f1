"""All spools of one recording: found as they appear, read while they grow."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmprof.plaintext import one_line
from llmprof.recording.spooled.devices import DeviceMap
from llmprof.recording.spooled.image import Image, command_name
from llmprof.recording.spooled.tail import SpoolTail
from llmprof.records import EngineInfo, EngineRecord, GpuDevice
from llmprof.records.processes import RecordedProcess
from llmprof.runfile.schema import process_number
from llmprof.runfile.writing.writer import RunFileWriter

_NAME = re.compile(r"(\d{1,7})-(\d{1,20})\.spool")
BATCH_BYTES = 64 << 20
"""Of spools that are read in one transaction: with one a process, 500 processes wait 500 times for
the disk."""


@dataclass
class Recorded:
    """A spool and the rows made of it."""

    tail: SpoolTail
    image: Image
    engine: EngineRecord | None = None


class Spools:
    """Args:
    changed: told of each new engine.
    """

    def __init__(
        self,
        folder: Path,
        writer: RunFileWriter,
        devices: DeviceMap,
        gpus: frozenset[int] | None,
        changed: Callable[[EngineRecord], None],
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._devices = devices
        self._gpus = gpus
        self._changed = changed
        self._known: set[str] = set()
        self._images_of: dict[int, int] = {}
        self.all: list[Recorded] = []
        self.engines: list[EngineRecord] = []
        self.bytes_read = 0

    def read(self, final: bool = False) -> bool:
        """Take in what is new. ``False``: there was nothing.

        Raises:
            RunFileError: the run file cannot be written.
        """
        self._find()
        any_new, more = False, True
        pieces = self._pieces(final)
        while more:
            taken, more = 0, False
            before = [(recorded.image, recorded.image.counts) for recorded in self.all]
            try:
                with self._writer.batch():
                    for size in pieces:
                        taken += size
                        any_new = any_new or size > 0
                        if taken >= BATCH_BYTES:
                            more = True
                            break
            except BaseException:
                for image, counts in before:
                    image.counts = counts  # the rows of this batch are not in the file
                raise
        return any_new

    def _pieces(self, final: bool) -> Iterator[int]:
        """Take in what is new, piece by piece: the bytes of each."""
        for recorded in self.all:
            if recorded.tail.broken:
                continue
            while frames := recorded.tail.read():
                size = 0
                for kind, payload in frames:
                    recorded.image.take(kind, payload)
                    size += len(payload)
                self.bytes_read += size
                recorded.image.flush()
                recorded.tail.release()
                yield size
            recorded.image.flush(final)

    def _find(self) -> None:
        try:
            names = {entry.name for entry in self._folder.iterdir()} - self._known
        except OSError:
            return
        found = sorted(
            (int(match[2]), int(match[1]), name)
            for name in names
            if (match := _NAME.fullmatch(name))
        )
        for _, pid, name in found:
            self._known.add(name)
            number = self._images_of.get(pid, 0)
            try:
                process = process_number(pid, number)
            except ValueError:
                continue  # more images of one process id than the schema has numbers for
            tail = SpoolTail(self._folder / name)
            self._images_of[pid] = number + 1
            image = Image(self._writer, process, self._devices, self._gpus, self._new_engine)
            self.all.append(Recorded(tail, image))

    def _new_engine(self, image: Image) -> int:
        engine = EngineRecord(
            engine_id=len(self.engines),
            label=self._label(image),
            name=image.name,
            python="",
            options={},
            state="running",
            traced_pid=image.process,
        )
        # It was adopted before it used a GPU.
        known = next((e for e in self.engines if e.traced_pid == image.process), None)
        if known is None:
            self.engines.append(engine)
        else:
            engine = known
        for recorded in self.all:
            if recorded.image is image:
                recorded.engine = engine
        self._writer.put_engine(engine)
        self._changed(engine)
        return engine.engine_id

    def adopt(self, pid: int, command: list[str]) -> None:
        """Make an engine of a program that no recorder was loaded into: it used no GPU so far.

        Raises:
            RunFileError: the run file cannot be written.
        """
        self.adopt_marked()
        if self.engines:
            return
        process, now = process_number(pid, self._images_of.get(pid, 0)), time.monotonic_ns()
        name = command_name(command) or "?"
        engine = EngineRecord(
            engine_id=0, label=name, name=name, python="", options={}, state="finished",
            info=EngineInfo.not_driven("cpu"), traced_pid=process,
        )  # fmt: skip
        self.engines.append(engine)
        self._writer.put_engine(engine)
        self._writer.put_process(
            RecordedProcess(
                process, 0, pid, 0, name, "", [one_line(word, 400) for word in command[:200]], None,
                self._writer.t0_ns, self._writer.t0_ns, now, 0, 0, 0, 0, 0, True, "",
            )
        )  # fmt: skip

    def adopt_marked(self) -> None:
        """Make an engine of each process that marked NVTX ranges and has no GPU that is recorded.

        Raises:
            RunFileError: the run file cannot be written.
        """
        for recorded in self.all:
            image = recorded.image
            if image.range_count and recorded.engine is None and not image.loaded_cuda:
                recorded.image.engine_id = self._new_engine(recorded.image)

    def _label(self, image: Image) -> str:
        name = image.name if image.rank is None else f"{image.name} rank {image.rank}"
        used = {engine.label for engine in self.engines}
        label, number = name, 1
        while label in used:
            number += 1
            label = f"{name}#{number}"
        return label

    @property
    def steps_source(self) -> dict[str, int]:
        """Ranges that ended, by text, of the process that has the most of a text."""
        shapes: dict[str, int] = {}
        for recorded in self.all:
            for text, count in recorded.image.ranges.shapes.items():
                shapes[text] = max(count, shapes.get(text, 0))
        return shapes

    @property
    def devices_added(self) -> list[GpuDevice]:
        """GPUs that NVML did not know."""
        return self._devices.added

    def drop(self) -> None:
        """Forget records that were read and not written."""
        for recorded in self.all:
            recorded.image.drop()

    def close(self) -> None:
        for recorded in self.all:
            recorded.tail.close()
