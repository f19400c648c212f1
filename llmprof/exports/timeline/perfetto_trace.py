"""``--to perfetto``: a protobuf trace, packet by packet, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmprof.exports.formats import Progress
from llmprof.exports.loaded import read_data
from llmprof.exports.timeline.tracks import Point, Slice, Track, events
from llmprof.records.steps import (
    StepChoice,
)

_SEQUENCE = 1
_CLEARED, _NEEDS = 1, 2
"""TracePacket.SequenceFlags: SEQ_INCREMENTAL_STATE_CLEARED, SEQ_NEEDS_INCREMENTAL_STATE."""


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """Tracks: engine → rounds, kernels by stream, API calls; counters of the GPU."""
    from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

    with out.open("wb") as file:
        made = _Trace(StreamingTraceProtoBuilder(file))
        for number, path in enumerate(files):
            progress(path.name, number / len(files))
            made.base = number
            for event in events(path, read_data(path, steps)):
                made.put(event)


class _Trace:
    """Interns names and announces tracks before their first event."""

    def __init__(self, builder: Any) -> None:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

        self._protos: Any = protos
        self._builder = builder
        self.base = 0
        self._uuids: dict[tuple[int, Track], int] = {}
        self._processes: dict[tuple[int, int], int] = {}
        self._names: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._started = False

    def put(self, event: Slice | Point) -> None:
        uuid = self._track(event.track)
        if isinstance(event, Point):
            packet = self._packet(event.time_ns)
            packet.track_event.type = self._protos.TrackEvent.TYPE_COUNTER
            packet.track_event.track_uuid = uuid
            packet.track_event.double_counter_value = event.value
            self._builder.write_packet(packet)
            return
        packet = self._packet(event.start_ns)
        begin = packet.track_event
        begin.type = self._protos.TrackEvent.TYPE_SLICE_BEGIN
        begin.track_uuid = uuid
        begin.name_iid = self._intern(packet, "event_names", self._names, event.name)
        category = self._intern(packet, "event_categories", self._kinds, event.category)
        begin.category_iids.append(category)
        for name, value in event.args.items():
            note = begin.debug_annotations.add()
            note.name = name
            if isinstance(value, int):
                note.int_value = value
            else:
                note.string_value = str(value)
        self._builder.write_packet(packet)
        self._end(uuid, event.end_ns)

    def _end(self, uuid: int, time_ns: int) -> None:
        # A sequence need not be ordered by time: the importer sorts, so a round may end before the
        # steps in it are written.
        packet = self._packet(time_ns)
        packet.track_event.type = self._protos.TrackEvent.TYPE_SLICE_END
        packet.track_event.track_uuid = uuid
        self._builder.write_packet(packet)

    def _packet(self, time_ns: int | None) -> Any:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.sequence_flags = _NEEDS if self._started else _CLEARED | _NEEDS
        self._started = True
        if time_ns is not None:
            packet.timestamp = max(0, time_ns)
        return packet

    def _intern(self, packet: Any, field: str, known: dict[str, int], text: str) -> int:
        if text not in known:
            known[text] = len(known) + 1
            entry = getattr(packet.interned_data, field).add()
            entry.iid, entry.name = known[text], text
        return known[text]

    def _track(self, track: Track) -> int:
        key = (self.base, track)
        if key in self._uuids:
            return self._uuids[key]
        parent = self._process(track)
        self._uuids[key] = uuid = 1000 + len(self._uuids)
        packet = self._packet(None)
        about = packet.track_descriptor
        about.uuid, about.parent_uuid, about.name = uuid, parent, track.name
        if track.kind == "counter":
            about.counter.unit_name = track.unit
        self._builder.write_packet(packet)
        return uuid

    def _process(self, track: Track) -> int:
        key = (self.base, track.pid)
        if key not in self._processes:
            self._processes[key] = uuid = 1 + len(self._processes)
            packet = self._packet(None)
            about = packet.track_descriptor
            about.uuid, about.name = uuid, track.process
            about.process.pid = self.base * 1000 + track.pid + 1
            about.process.process_name = track.process
            self._builder.write_packet(packet)
        return self._processes[key]
