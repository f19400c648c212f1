"""One event of a Kineto trace after the other, as rows of an nsys export."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from llmprof.runfile import schema
from llmprof.runfile.writing.export_writer import CALL, COPY, KERNEL, RANGE, SET, SYNC, ExportWriter
from llmprof.traces.kineto.fields import (
    collective_bytes,
    copy_kind,
    nanoseconds,
    sync_kind,
    three,
    whole,
)

USER, OPERATORS, PYTHON, ON_GPU = 0, 1, 2, 3
DOMAINS = {OPERATORS: schema.OP_DOMAIN, PYTHON: schema.PYTHON_DOMAIN, ON_GPU: schema.GPU_DOMAIN}
"""NVTX domain → name; ``user_annotation`` has NVTX' default domain."""
GPU_THREADS = 0xE00000
"""Ranges that Kineto drew on a stream get a thread of this number | stream."""
_IDS = 1 << 22
"""Linux gives process and thread ids below this; others get one from ``_OTHER_IDS`` on."""
_OTHER_IDS = 0xC00000
_TEXTS = 1 << 26
"""Characters of names that are kept; a real trace has a few MB."""
_NO_ROOM = "(one of too many names)"
_OPERATOR = re.compile(r"::|Backward\d*$|^autograd")
_LAUNCH = re.compile(r"Launch")
_CAPTURE = re.compile(r"StreamBeginCapture|StreamEndCapture")
_GRAPH_LAUNCH = re.compile(r"^(cuda|cu|hip)GraphLaunch")
_SIZED = re.compile(r"^hipMem(cpy|set)")


class Events:
    """Takes events in any order; ``take`` is called once for each.

    Times stay on the file's clock; device rows have no process (``None``) until it is known.
    """

    def __init__(self, out: ExportWriter) -> None:
        self._out = out
        self.first_ns = 1 << 62
        """Of all starts that are not 0."""
        self.kernels = 0
        self.known = 0
        """Events of a category that Kineto has."""
        self.unread: Counter[str] = Counter()
        """Category → events with a duration that no table is for."""
        self.untimed: Counter[str] = Counter()
        """Category → events left out since their times are no times."""
        self.calls: Counter[int] = Counter()
        """Process → API calls, operators and ranges."""
        self.launches = 0
        self.captures = 0
        self.graph_launches: set[int] = set()
        """Correlation ids."""
        self.sizes: dict[int, int] = {}
        """Correlation id → bytes, of calls that say them where the copy does not (AMD)."""
        self.unsized = 0
        self.process_names: dict[int, str] = {}
        self.process_labels: dict[int, str] = {}
        self.devices: set[int] = set()
        self._threads: dict[Any, int] = {}
        self._processes: dict[Any, int] = {}
        self._texts = 0
        self._ids: dict[str, int] = {}
        host = {
            "cuda_runtime": self._call, "runtime": self._call, "cuda_driver": self._call,
            "hip_runtime": self._call,
            "cpu_op": self._operator, "operator": self._old_operator,
            "user_annotation": self._annotation, "python_function": self._python,
        }  # fmt: skip
        device = {
            "kernel": self._kernel, "gpu_memcpy": self._copy, "memcpy": self._copy,
            "gpu_memset": self._set, "memset": self._set, "cuda_sync": self._sync,
            "gpu_user_annotation": self._gpu_annotation,
        }  # fmt: skip
        self._by_category: dict[str, Callable[[dict[str, Any], int, int], None]] = {
            **host, **device,
        }  # fmt: skip
        for name in list(self._by_category):
            self._by_category[name.capitalize()] = self._by_category[name]

    def take(self, event: Any) -> None:
        if type(event) is not dict:
            self.unread["no event"] += 1
            return
        phase = event.get("ph")
        if phase != "X":
            if phase == "M":
                self._metadata(event)
            return
        category = event.get("cat")
        handle = self._by_category.get(category) if type(category) is str else None
        if handle is None:
            if category != "Trace":
                self.unread[category if type(category) is str else "?"] += 1
            return
        self.known += 1
        start, length = nanoseconds(event.get("ts")), nanoseconds(event.get("dur", 0))
        if start is None or length is None or start < 0 or length < 0:
            self.untimed[str(category)] += 1
            return
        if 0 < start < self.first_ns:
            self.first_ns = start
        handle(event, start, start + length)

    def _metadata(self, event: dict[str, Any]) -> None:
        values = event.get("args")
        if not isinstance(values, dict):
            return
        if event.get("name") == "process_name" and isinstance(values.get("name"), str):
            self.process_names[self.process(event.get("pid"))] = values["name"]
        elif event.get("name") == "process_labels" and isinstance(values.get("labels"), str):
            self.process_labels[self.process(event.get("pid"))] = values["labels"]

    # -- host --------------------------------------------------------------------------------

    def _call(self, event: dict[str, Any], start: int, end: int) -> None:
        values = _arguments(event)
        name = event.get("name")
        correlation = whole(values.get("correlation"))
        if type(name) is str:
            if _LAUNCH.search(name):
                self.launches += 1
                if correlation and _GRAPH_LAUNCH.match(name):
                    self.graph_launches.add(correlation)
            elif _CAPTURE.search(name):
                self.captures += 1
            elif "size" in values and _SIZED.match(name) and len(self.sizes) < 1 << 20:
                self.sizes[correlation] = whole(values["size"])
        driver = type(name) is str and name[:2] == "cu" and name[2:3].isupper()
        self._out.add(
            CALL,
            (start, end, int(driver), self._thread(event), correlation or None, self._name(event)),
        )

    def _operator(self, event: dict[str, Any], start: int, end: int) -> None:
        self._range(event, start, end, OPERATORS)

    def _old_operator(self, event: dict[str, Any], start: int, end: int) -> None:
        """In 2021 a range of the user was an operator like any other."""
        own = _OPERATOR.search(str(event.get("name"))) is not None
        self._range(event, start, end, OPERATORS if own else USER)

    def _annotation(self, event: dict[str, Any], start: int, end: int) -> None:
        self._range(event, start, end, USER)

    def _python(self, event: dict[str, Any], start: int, end: int) -> None:
        self._range(event, start, end, PYTHON)

    def _range(self, event: dict[str, Any], start: int, end: int, domain: int) -> None:
        thread = self._thread(event)
        self._out.add(RANGE, (start, end, schema.PUSH_POP, thread, self._name(event), domain))

    # -- device ------------------------------------------------------------------------------

    def _kernel(self, event: dict[str, Any], start: int, end: int) -> None:
        values = _arguments(event)
        device, context, stream, correlation = self._place(event, values)
        node = values.get("graph node id", values.get("graphNodeId"))
        graph = values.get("graph id", values.get("graphId"))
        name = self._name(event)
        self.kernels += 1
        self._out.add(
            KERNEL,
            (
                start, end, device, context, stream, correlation, None, name, name,
                *three(values.get("grid")), *three(values.get("block")),
                whole(values.get("registers per thread")), whole(values.get("shared memory")),
                whole(node) or None, whole(graph) or None, collective_bytes(values),
            ),
        )  # fmt: skip

    def _copy(self, event: dict[str, Any], start: int, end: int) -> None:
        values = _arguments(event)
        device, context, stream, correlation = self._place(event, values)
        operation, source, target = copy_kind(str(event.get("name")), values)
        size = whole(values.get("bytes"), -1)
        self.unsized += size < 0
        self._out.add(
            COPY,
            (start, end, device, context, stream, correlation, None, size, operation, source,
             target, whole(values.get("graph node id")) or None),
        )  # fmt: skip

    def _set(self, event: dict[str, Any], start: int, end: int) -> None:
        values = _arguments(event)
        device, context, stream, correlation = self._place(event, values)
        node = whole(values.get("graph node id")) or None
        size = whole(values.get("bytes"), -1)
        self.unsized += size < 0
        self._out.add(SET, (start, end, device, context, stream, correlation, None, size, node))

    def _sync(self, event: dict[str, Any], start: int, end: int) -> None:
        values = _arguments(event)
        device, context, stream, correlation = self._place(event, values, mark=False)
        kind = sync_kind(str(values.get("cuda_sync_kind", event.get("name"))))
        self._out.add(SYNC, (start, end, device, context, stream, correlation, None, kind))

    def _gpu_annotation(self, event: dict[str, Any], start: int, end: int) -> None:
        stream = GPU_THREADS | whole(event.get("tid")) & 0xFFFF
        row = (start, end, schema.PUSH_POP, stream, self._name(event), ON_GPU)
        self._out.add(RANGE, row)

    def _place(
        self, event: dict[str, Any], values: dict[str, Any], mark: bool = True
    ) -> tuple[int, int, int, int | None]:
        """Device, context, stream, correlation; a kernel's pid is its device, its tid a stream."""
        device = whole(values.get("device", event.get("pid")))
        if mark:
            self.devices.add(device)
        stream = whole(values.get("stream", event.get("tid")))
        return (
            device,
            whole(values.get("context")),
            stream,
            whole(values.get("correlation")) or None,
        )

    # -- names and ids -----------------------------------------------------------------------

    def _name(self, event: dict[str, Any]) -> int:
        name = event.get("name")
        text = name if type(name) is str else str(name)[:200]
        known = self._ids.get(text)
        if known is not None:
            return known
        self._texts += len(text)
        if self._texts > _TEXTS:
            return self._out.string(_NO_ROOM)
        number = self._ids[text] = self._out.string(text)
        return number

    def _thread(self, event: dict[str, Any]) -> int:
        """``globalTid``."""
        pid, tid = event.get("pid"), event.get("tid")
        try:
            found = self._threads.get((pid, tid))
        except TypeError:  # a list in place of a number
            pid, tid, found = str(pid)[:40], str(tid)[:40], None
        if found is None:
            number = whole(tid, -1)
            if not 0 <= number < _IDS:
                # Threads of old traces and other systems: 140735268345600.
                number = _OTHER_IDS | len(self._threads) & 0x1FFFFF
            process = self.process(pid)
            found = self._threads[pid, tid] = schema.global_tid(process, number)
        self.calls[found >> 24 & 0xFFFFFF] += 1
        return found

    def process(self, pid: Any) -> int:
        """A process id that the schema can hold."""
        number = whole(pid, -1)
        if 0 <= number < _IDS:
            return number
        key = str(pid)[:40]
        return self._processes.setdefault(key, _OTHER_IDS | len(self._processes) & 0x1FFFFF)


def _arguments(event: dict[str, Any]) -> dict[str, Any]:
    values = event.get("args")
    return values if type(values) is dict else {}
