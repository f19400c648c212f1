"""No kernel of a trace of torch.profiler is dropped without being counted."""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from unittest import mock

import kineto_factory as kineto
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.analysis.view.opening import open_run
from llmprof.traces.opened import readable

GOOD = st.tuples(st.floats(1.0, 1e6), st.floats(0.1, 100.0))
BAD = st.sampled_from([(-5.0, 1.0), (None, 1.0), ("1", 1.0), (10.0, -1.0), (1e300, 1.0)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(GOOD, BAD), max_size=30), st.integers(0, 5))
def test_every_kernel_is_a_row_or_counted(times: list[tuple[object, float]], twice: int) -> None:
    events = kineto.steps()
    made = []
    for number, (start, duration) in enumerate(times):
        args = {"device": 0, "stream": 7, "correlation": 9000 + number}
        event = kineto.event("kernel", "more", kineto.BASE_US, 5.0, 0, 7, **args)
        at = kineto.BASE_US + start if isinstance(start, float) and 0 < start < 1e9 else start
        made.append({**event, "ts": at, "dur": duration})
    given_twice = made[:twice]
    base = sum(1 for e in events if e["cat"] == "kernel")
    with tempfile.TemporaryDirectory() as folder:
        place = {"XDG_CACHE_HOME": str(Path(folder) / "cache")}
        with mock.patch.dict(os.environ, place):
            document = kineto.document(events + made + given_twice)
            path = readable(kineto.write(Path(folder) / "t.json", document))
            data = open_run(path)
            with closing(sqlite3.connect(path)) as db:
                (kept,) = db.execute("SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
    said = "\n".join(w.text for w in data.warnings)
    counted = sum(
        int(number)
        for number in re.findall(r"(\d+) events? with|(\d+) kernels? stands? in", said)
        for number in number
        if number
    )
    assert kept + counted == base + len(made) + len(given_twice), said
