"""The JSON of ``rocprofv3 --output-format json`` into a file in Nsight Systems' schema.

Members as rocprofiler-sdk writes them (``source/lib/output/generateJSON.cpp``); times are ns.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmprof.errors import RunFileError
from llmprof.plaintext import one_line
from llmprof.records import GpuDevice
from llmprof.runfile import schema
from llmprof.runfile.foreign.source import Source
from llmprof.runfile.writing.export_writer import CALL, COPY, KERNEL, RANGE, ExportWriter
from llmprof.traces.json_stream import Document, NotJson

FORMAT = "rocprofv3"
Progress = Callable[[str, float | None], None]

_TOP = "rocprofiler-sdk-tool"
_RECORDS = f"{_TOP}.buffer_records"
_KERNELS, _COPIES = f"{_RECORDS}.kernel_dispatch", f"{_RECORDS}.memory_copy"
_MARKERS = f"{_RECORDS}.marker_api"
_CALLS = (f"{_RECORDS}.hip_api", f"{_RECORDS}.rccl_api")
_GPU = 2
"""``agents[].type``; 1 is a CPU."""
_COPY_KINDS = {"HOST_TO_DEVICE": 1, "DEVICE_TO_HOST": 2, "DEVICE_TO_DEVICE": 8, "HOST_TO_HOST": 9}
_UNKNOWN_KIND = 7


def is_rocprof(path: Path) -> bool:
    """Its first name says so."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as text:
            return f'"{_TOP}"'.encode() in text.read(256)
    except (OSError, EOFError, zlib.error):
        return False


def convert(path: Path, out: ExportWriter, progress: Progress) -> None:
    """Read ``path`` into ``out``.

    Raises:
        RunFileError: no such file, damaged, or nothing in it.
    """
    name, document = one_line(str(path)), Document(path)
    size = max(1, path.stat().st_size)

    def advance() -> None:
        progress(f"reading {one_line(path.name, 40)}", min(1.0, document.done_bytes / size))

    rows = _Rows(out, document)
    targets = {_KERNELS, _COPIES, _MARKERS, *_CALLS}
    try:
        for target, record in document.elements(targets, advance=advance):
            rows.take(target, record)
    except NotJson as why:
        raise RunFileError(f"{name}: is no JSON: it begins with {one_line(str(why), 40)}") from None
    if not rows.taken:
        raise RunFileError(
            f"{name}: rocprofv3 recorded no kernel: run it with --kernel-trace (and --hip-trace)"
        )
    metadata = _dict(document.values.get(f"{_TOP}.metadata"))
    pid = _whole(metadata.get("pid")) & 0x3FFFFF
    process = schema.global_pid(pid)
    command = metadata.get("command")
    label = Path(str(command[0])).name if isinstance(command, list) and command else FORMAT
    out.process(process, one_line(label, 60))
    out.devices(rows.devices(), [process])
    if out.rows_of(CALL) or out.rows_of(RANGE):
        for table in (CALL, RANGE):
            if out.rows_of(table):
                out.execute(f"UPDATE {table} SET globalTid = globalTid | ?", [process])
    warnings = []
    if document.cut:
        warnings.append(f"the file is not whole ({document.cut}): what came before is shown")
    if rows.untimed:
        warnings.append(f"{rows.untimed:,} records without a valid time: left out")
    if document.broken:
        warnings.append(f"{document.broken:,} records are no valid JSON: left out")
    if not out.rows_of(CALL):
        warnings.append("no HIP calls in it (rocprofv3 --hip-trace): launches are not known")
    source = Source(FORMAT, "JSON", str(path))
    out.finish(source, rows.first_ns if rows.first_ns < 1 << 62 else 0, 0, process, warnings)


class _Rows:
    """Records to rows; names stand before the records in the file."""

    def __init__(self, out: ExportWriter, document: Document) -> None:
        self._out, self._document = out, document
        self._names: dict[int, str] = {}
        self._agents: dict[int, dict[str, Any]] = {}
        self._operations: dict[int, list[Any]] = {}
        self._markers: dict[int, str] = {}
        self.first_ns = 1 << 62
        self.taken = self.untimed = 0
        self.used: Counter[int] = Counter()

    def take(self, target: str, record: Any) -> None:
        if not self._agents:
            self._learn()
        if not isinstance(record, dict):
            self.untimed += 1
            return
        start, end = _whole(record.get("start_timestamp")), _whole(record.get("end_timestamp"))
        if not 0 < start <= end:
            self.untimed += 1
            return
        self.first_ns = min(self.first_ns, start)
        self.taken += 1
        if target == _KERNELS:
            self._kernel(record, start, end)
        elif target == _COPIES:
            self._copy(record, start, end)
        elif target == _MARKERS:
            self._marker(record, start, end)
        else:
            thread = _whole(record.get("thread_id")) & 0x3FFFFF
            name = self._out.string(self._operation(record))
            self._out.add(CALL, (start, end, 0, thread, _correlation(record), name))

    def _learn(self) -> None:
        """Kernel names, agents and operations: top-level members before the records."""
        values = self._document.values
        for symbol in _dicts(values.get(f"{_TOP}.kernel_symbols")):
            name = symbol.get("formatted_kernel_name") or symbol.get("kernel_name")
            self._names[_whole(symbol.get("kernel_id"))] = str(name)
        for agent in _dicts(values.get(f"{_TOP}.agents")):
            self._agents[_handle(agent.get("id"))] = agent
        strings = _dict(values.get(f"{_TOP}.strings"))
        self._markers = {
            _whole(text.get("key")): str(text.get("value"))
            for text in _dicts(strings.get("marker_api"))
        }
        for number, kind in enumerate(_dicts(strings.get("buffer_records"))):
            found = kind.get("operations")
            self._operations[number] = found if isinstance(found, list) else []
        self._agents.setdefault(-1, {})

    def _device(self, handle: int) -> int:
        agent = self._agents.get(handle, {})
        node = _whole(agent.get("logical_node_id", agent.get("node_id")))
        self.used[handle] += 1
        return node

    def _kernel(self, record: dict[str, Any], start: int, end: int) -> None:
        info = _dict(record.get("dispatch_info"))
        number = _whole(info.get("kernel_id"))
        name = self._out.string(self._names.get(number, f"kernel {number}"))
        block = _xyz(info.get("workgroup_size"))
        # HSA counts a grid in work items, CUDA in blocks.
        grid = tuple(-(-g // b) if b else 0 for g, b in zip(_xyz(info.get("grid_size")), block,
                                                          strict=True))  # fmt: skip
        device = self._device(_handle(info.get("agent_id")))
        stream = _handle(record.get("stream_id")) or _handle(info.get("queue_id"))
        shared = _whole(info.get("group_segment_size"))
        self._out.add(
            KERNEL,
            (start, end, device, 0, stream, _correlation(record), None, name, name, *grid, *block,
             0, shared, None, None, None),
        )  # fmt: skip

    def _copy(self, record: dict[str, Any], start: int, end: int) -> None:
        said = self._operation(record)
        kind = next((number for word, number in _COPY_KINDS.items() if word in said), 0)
        target = _handle(record.get("dst_agent_id"))
        source = _handle(record.get("src_agent_id"))
        on_gpu = self._agents.get(target, {}).get("type") == _GPU
        device = self._device(target if on_gpu else source)
        self._out.add(
            COPY,
            (start, end, device, 0, _handle(record.get("stream_id")), _correlation(record), None,
             _whole(record.get("bytes")), kind, _UNKNOWN_KIND, _UNKNOWN_KIND, None),
        )  # fmt: skip

    def _marker(self, record: dict[str, Any], start: int, end: int) -> None:
        """roctx ranges; their text is among the strings, by the correlation id."""
        text = self._markers.get(_correlation(record) or 0) or self._operation(record)
        thread = _whole(record.get("thread_id")) & 0x3FFFFF
        self._out.add(RANGE, (start, end, schema.PUSH_POP, thread, self._out.string(text), 0))

    def _operation(self, record: dict[str, Any]) -> str:
        known = self._operations.get(_whole(record.get("kind")), [])
        number = _whole(record.get("operation"))
        return str(known[number]) if 0 <= number < len(known) else f"operation {number}"

    def devices(self) -> list[GpuDevice]:
        found = {}
        for handle in self.used:
            agent = self._agents.get(handle, {})
            number = _whole(agent.get("logical_node_id", agent.get("node_id")))
            name = agent.get("product_name") or agent.get("name") or "AMD GPU"
            count = _whole(agent.get("cu_count")) or None
            found[number] = GpuDevice(number, one_line(str(name), 60), "", sm_count=count)
        return [found[number] for number in sorted(found)]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _whole(value: Any) -> int:
    return value if type(value) is int and -(1 << 62) < value < 1 << 62 else 0


def _handle(value: Any) -> int:
    """``{"handle": 5}``; as small as SQLite's integers are."""
    return _whole(value.get("handle")) if isinstance(value, dict) else _whole(value)


def _xyz(value: Any) -> tuple[int, int, int]:
    found = value if isinstance(value, dict) else {}
    return _whole(found.get("x")), _whole(found.get("y")), _whole(found.get("z"))


def _correlation(record: dict[str, Any]) -> int | None:
    found = record.get("correlation_id")
    return (_whole(found.get("internal")) if isinstance(found, dict) else 0) or None
