"""Large JSON read piece by piece: everything that is whole comes out, whatever else is there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.errors import RunFileError
from llmprof.traces import json_stream
from llmprof.traces.json_stream import Document, NotJson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.lists(st.dictionaries(st.text(min_size=1), VALUES, min_size=1, max_size=4), max_size=12)


def read(path: Path, target: str = "events", **options: Any) -> tuple[Document, list[Any]]:
    document = Document(path)
    return document, [e for _, e in document.elements({target}, **options)]


@given(
    events=EVENTS,
    before=st.dictionaries(st.sampled_from("abc"), VALUES),
    behind=st.dictionaries(st.sampled_from("xyz"), VALUES),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_all_of_it_comes_out_at_any_size_of_a_chunk(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[Any],
    before: dict[str, Any],
    behind: dict[str, Any],
    chunk: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    whole = {**before, "events": events, **behind}
    text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "replace"))
    expected = json.loads(path.read_bytes().decode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        document, found = read(path)
    assert found == expected["events"]
    assert document.values == {k: v for k, v in expected.items() if k != "events"}
    assert not document.cut
    assert not document.broken


@given(keep=st.integers(1, 399), packed=st.booleans())
@settings(max_examples=30, deadline=None)
def test_of_a_cut_file_every_whole_element_is_kept(
    tmp_path_factory: pytest.TempPathFactory, keep: int, packed: bool
) -> None:
    """The share that was written, in thousandths."""
    events = [{"ph": "X", "n": i, "args": {"a": [i, i]}} for i in range(300)]
    text = json.dumps({"v": 1, "events": events})
    part = text[: len(text) * keep // 400]
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_bytes(gzip.compress(part.encode()) if packed else part.encode())
    whole = part.count("]}}")
    try:
        document, found = read(path)
    except NotJson:
        assert whole == 0
        return
    assert found == events[:whole]
    assert document.cut


def test_a_cut_gzip_file_keeps_what_can_be_unpacked(tmp_path: Path) -> None:
    import random

    rng = random.Random(1)
    events = [{"n": rng.random()} for _ in range(5000)]
    data = gzip.compress(json.dumps({"events": events}).encode())
    path = tmp_path / "x.json.gz"
    path.write_bytes(data[: len(data) // 2])
    document, found = read(path)
    assert 1000 < len(found) < 5000
    assert found == events[: len(found)]
    assert "compressed" in document.cut


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ('{"n": 1, "x": inf}', {"n": 1, "x": None}),
        ('{"n": 1, "x": -nan}', {"n": 1, "x": None}),
        (r'{"n": 1, "x": "C:\Users\me"}', {"n": 1, "x": r"C:\Users\me"}),
        ('{"n": 1, "x": "a\tb"}', {"n": 1, "x": "a\tb"}),
        ('{"n": 1, "x": }', None),
        ('{"n": 1 "x": 2}', None),
        ('{"n": ' + "[" * 100_000 + "]" * 100_000 + "}", None),
    ],
)
def test_a_broken_element_costs_nothing_but_itself(
    tmp_path: Path, broken: str, mended: Any
) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"events": [{"a": 1},\n' + broken + ',\n{"a": 2}], "z": 3}')
    document, found = read(path)
    assert found == [{"a": 1}, *([mended] if mended else []), {"a": 2}]
    assert document.broken == (mended is None)
    assert document.values == {"z": 3}


def test_numbers_since_1970_keep_their_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"events": [{"ts": 1712195495505583.123}]}')
    _, (found,) = read(path, exact=True)
    assert round(found["ts"] * 1000) == 1712195495505583123


def test_nested_arrays_are_found_by_their_way(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    inner = {"meta": {"pid": 5}, "records": {"kernels": [{"n": 1}, {"n": 2}], "empty": []}}
    path.write_text(json.dumps({"tool": [inner], "end": True}))
    document, found = read(path, "tool.records.kernels")
    assert found == [{"n": 1}, {"n": 2}]
    assert document.values == {"tool.meta": {"pid": 5}, "tool.records.empty": [], "end": True}


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b'{"events": [' + b" " * 50_000_000))
    monkeypatch.setattr(json_stream, "FREE", 1 << 22)
    with pytest.raises(RunFileError, match=r"refused: .* unpack it yourself"):
        read(path)


@pytest.mark.parametrize("text", ["", "hello", "{", "{]", "{1: 2}", "nul", '{"a" 3}'])
def test_what_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    try:
        document, found = read(path)
    except NotJson:
        return
    assert not found
    assert document.cut


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_bytes_break_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_bytes(b'{"events": [{"a": 1}, ' + data)
    try:
        _, found = read(path)
    except NotJson:
        return
    assert found[:1] == [{"a": 1}]
