"""Traces of torch.profiler become rows of an nsys export, and open as one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kineto_factory as kineto
import numpy as np
import pytest

from llmprof.analysis.view.opening import open_run, step_candidates
from llmprof.analysis.view.traced import RunTrace
from llmprof.errors import RunFileError
from llmprof.records import RunData
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.rows import TraceRows
from llmprof.traces import cache
from llmprof.traces.opened import readable, readable_all


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llmprof" / "traces"


def opened(tmp_path: Path, content: Any, name: str = "t.json.gz") -> tuple[RunData, Path]:
    path = readable(kineto.write(tmp_path / name, content))
    return open_run(path), path


def rows(data: RunData, path: Path, engine: int = 0) -> TraceRows:
    with RunFileReader(path) as reader:
        return reader.trace_rows(data.rounds_of(engine, "traced")[0])


def said(data: RunData) -> str:
    return "\n".join(w.text for w in data.warnings)


@pytest.mark.parametrize("amd", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_kernels_calls_and_ranges_of_a_trace(tmp_path: Path, amd: bool, graph: bool) -> None:
    events = kineto.steps(6, amd=amd, graph=graph)
    data, path = opened(tmp_path, kineto.document(events))
    found = rows(data, path)
    kernels = [e for e in events if e["cat"] == "kernel"]
    assert (found.kernels.end_ns - found.kernels.start_ns).tolist() == [10_500] * 18
    first = min(e["ts"] for e in events)
    expected = [round((e["ts"] - first) * 1000) + 1000 for e in kernels]
    assert found.kernels.start_ns.tolist() == sorted(expected)
    assert {found.kernels.names[i] for i in found.kernels.name_id} == {
        "ampere_sgemm_128x64_nn", "flash_fwd_kernel", "my_own_thing"
    }  # fmt: skip
    # Kernels of a graph are told from others, on AMD by what launched them.
    assert set(found.kernels.graph_node) == ({1, 2, 3} if graph else {0})
    assert set(found.kernels.correlation) <= set(found.api.correlation)
    (engine,) = data.engines
    assert (engine.label, engine.name) == ("python3", "torch")
    (record,) = data.rounds
    assert len(record.stamps_ns) - 1 == 6  # one step a range
    (trace,) = RunTrace(path, data).engines
    assert sum(k.total_ns for k in trace.kernels.kernels) == 18 * 10_500


def test_what_a_user_sees_of_it(tmp_path: Path) -> None:
    data, _ = opened(tmp_path, kineto.document(kineto.steps()))
    assert data.shown_path == str(tmp_path / "t.json.gz")
    assert data.info.source == "opened"
    assert data.info.environment["source"] == "torch.profiler"
    (device,) = data.gpu_devices
    assert (device.name, device.sm_count) == ("NVIDIA H100 80GB HBM3", 132)
    assert data.info.t0_utc_ns == kineto.BASE_NS + round(kineto.BASE_US * 1000) - 1000


def test_the_schema_of_2021(tmp_path: Path) -> None:
    """Other categories, threads as texts, whole µs since 1970, ranges among the operators."""
    old = {"kernel": "Kernel", "cpu_op": "Operator", "cuda_runtime": "Runtime"}
    events = []
    for e in kineto.steps(6):
        category = old.get(e["cat"], "Operator" if e["cat"] == "user_annotation" else None)
        if category:
            tid = f"stream {e['tid']}" if category == "Kernel" else str(e["tid"])
            ts = 1_623_142_623_000_000 + int(e["ts"] - kineto.BASE_US)
            events.append({**e, "cat": category, "tid": tid, "ts": ts, "dur": int(e["dur"])})
    data, path = opened(tmp_path, {"schemaVersion": 1, "traceEvents": events})
    assert (
        int(np.sum(rows(data, path).kernels.end_ns - rows(data, path).kernels.start_ns)) == 180_000
    )
    assert len(data.rounds[0].stamps_ns) == 7
    assert data.info.t0_utc_ns == 1_623_142_623_000_000_000 - 1000


def test_times_since_1970_with_decimals_keep_their_nanoseconds(tmp_path: Path) -> None:
    text = json.dumps(kineto.document(kineto.steps(3)))
    document = json.loads(text)
    del document["baseTimeNanoseconds"]
    document["displayTimeUnit"] = "ns"
    text = json.dumps(document).replace(": 42036696", ": 17121942036")
    data, path = opened(tmp_path, text.replace('.0, "dur"', '.123, "dur"'), "t.json")
    assert rows(data, path).kernels.start_ns[0] == 51_000
    assert data.info.t0_utc_ns % 1000 == 123


def test_a_trace_that_a_kill_cut_keeps_what_came(tmp_path: Path) -> None:
    text = json.dumps(kineto.document(kineto.steps()))
    data, path = opened(tmp_path, text[: text.rindex("decode 4")], "t.json")
    assert "not whole" in said(data)
    assert "its first" in said(data)
    assert len(rows(data, path).kernels) >= 12


def test_times_that_are_none_are_counted_and_left_out(tmp_path: Path) -> None:
    events = kineto.steps()
    bad = [{"ts": -5.0}, {"ts": 0}, {"dur": -1.0}, {"ts": None}, {"ts": "1"}, {"dur": float("inf")},
           {"ts": 1e300}, {"dur": [1]}]  # fmt: skip
    for number, change in enumerate(bad):
        values = {"device": 0, "stream": 7, "correlation": 900 + number}
        events.append(
            {**kineto.event("kernel", "bad", kineto.BASE_US, 5.0, 0, 7, **values), **change}
        )
    data, path = opened(tmp_path, kineto.document(events))
    assert len(rows(data, path).kernels) == 18
    assert f"{len(bad)} events with a negative, zero or no time" in said(data)


def test_kernels_that_stand_twice_count_once(tmp_path: Path) -> None:
    events = kineto.steps()
    data, path = opened(
        tmp_path, kineto.document(events + [e for e in events if e["cat"] == "kernel"])
    )
    assert len(rows(data, path).kernels) == 18
    assert "18 kernels stand in the file twice" in said(data)


def test_kernels_belong_to_the_process_that_launched_them(tmp_path: Path) -> None:
    mine, other = kineto.steps(4), []
    for e in kineto.steps(4):
        values = {**e["args"]}
        if "correlation" in values:
            values["correlation"] += 50_000
        host = e["pid"] == 77
        other.append(
            {**e, "args": values, "ts": e["ts"] + 3.0, **({"pid": 78, "tid": 78} if host else {})}
        )
    data, path = opened(tmp_path, kineto.document(mine + other))
    assert len(data.engines) == 2
    assert [len(rows(data, path, e.engine_id).kernels) for e in data.engines] == [12, 12]


def test_a_trace_of_the_capture_is_called_one(tmp_path: Path) -> None:
    events = [
        kineto.event("cuda_runtime", name, kineto.BASE_US + i, 1.0, 77, 77, correlation=i + 1)
        for i, name in enumerate(["hipStreamBeginCapture"] + ["hipLaunchKernel"] * 40)
    ]
    data, _ = opened(tmp_path, kineto.document(events))
    assert "a graph was being captured here: 40 launches, only 0 kernels ran" in said(data)


def test_a_trace_of_the_cpu_alone_opens_and_says_so(tmp_path: Path) -> None:
    events = [kineto.event("cpu_op", "aten::mm", kineto.BASE_US + i, 1.0, 77, 77) for i in range(9)]
    data, _ = opened(tmp_path, kineto.document(events))
    assert "a trace of the CPU only" in said(data)
    assert [e.label for e in data.engines] == ["python3"]


def test_operators_are_no_candidates_for_steps(tmp_path: Path) -> None:
    _, path = opened(tmp_path, kineto.document(kineto.steps()))
    assert [p.pattern for p in step_candidates(path)] == ["decode *"]


def test_mangled_names_become_readable_and_bombs_do_not_hang(tmp_path: Path) -> None:
    bomb = (
        "_Z1fI" + "N1aI" * 20 + "".join(f"S{chr(65 + i)}_S{chr(65 + i)}_" for i in range(20)) * 30
    )
    events = kineto.steps(3)
    for name in ("_ZN5aiter10rms_kernelIfEEvPT_", "_Znothing", bomb):
        values = {"device": 0, "stream": 7, "correlation": 1}
        events.append(kineto.event("kernel", name, kineto.BASE_US + 2000, 1.0, 0, 7, **values))
    data, path = opened(tmp_path, kineto.document(events))
    names = set(rows(data, path).kernels.names.values())
    assert {"void aiter::rms_kernel<float>(float*)", "_Znothing"} <= names


def test_ranks_of_one_run_are_one_run(tmp_path: Path) -> None:
    paths = []
    for rank in (1, 0, 2):
        events = [{**e, "ts": e["ts"] + rank} for e in kineto.steps()]
        world = {"backend": "nccl", "rank": rank, "world_size": 4}
        document = kineto.document(events, distributedInfo=world)
        paths.append(kineto.write(tmp_path / f"rank{rank}.json.gz", document))
    (path,) = readable_all(paths)
    data = open_run(path)
    assert [e.label for e in data.engines] == ["rank 0", "rank 1", "rank 2"]
    assert [len(rows(data, path, e.engine_id).kernels) for e in data.engines] == [18, 18, 18]
    starts = [data.rounds_of(e.engine_id, "traced")[0].stamps_ns[0] for e in data.engines]
    assert [s - starts[0] for s in starts] == [0, 1000, 2000]  # one axis
    assert data.shown_path.endswith("rank0.json.gz … rank2.json.gz (3 ranks)")
    # The same rank twice is two runs.
    again = kineto.write(tmp_path / "again.json", kineto.document(
        kineto.steps(), distributedInfo={"rank": 0, "world_size": 4}))  # fmt: skip
    assert len(readable_all([*paths, again])) == 4


def test_a_trace_is_converted_once(tmp_path: Path, own_cache: Path) -> None:
    path = kineto.write(tmp_path / "t.json", kineto.document(kineto.steps()))
    first = readable(path)
    stamp = first.stat().st_ino
    assert readable(path) == first
    assert first.stat().st_ino == stamp
    kineto.write(path, kineto.document(kineto.steps(7)))
    assert readable(path) != first
    assert not list(own_cache.glob("*.part"))


def test_the_cache_is_bounded(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    monkeypatch.setattr(cache, "YOUNG_S", -1)
    for number in range(3):
        readable(kineto.write(tmp_path / f"{number}.json", kineto.document(kineto.steps())))
    assert len(list(own_cache.iterdir())) == 1


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    path = kineto.write(tmp_path / "t.json", {"traceEvents": []})
    with pytest.raises(RunFileError):
        readable(path)
    assert not list(own_cache.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": 1}, "no trace: it holds a"),
        ([1, 2, 3], "a Chrome trace, but not one of torch.profiler"),
        ({"traceEvents": [{"ph": "X", "cat": "blink", "name": "x", "ts": 1, "dur": 1}]}, "blink"),
        ('{"traceEvents": [', "its end is missing"),
        ("{nothing", "is no JSON"),
        ("[" * 100_000, "holds no event"),
    ],
    ids=["object", "numbers", "chrome", "nothing in it", "no JSON", "deep"],
)
def test_json_that_is_no_trace_is_named(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(RunFileError) as why:
        readable(kineto.write(tmp_path / "t.json", content))
    assert words in str(why.value)
    assert "\n" not in str(why.value)


def test_events_of_any_shape_cost_nothing(tmp_path: Path) -> None:
    odd: list[Any] = [
        None, 5, "x", [], {}, {"ph": "X"}, {"ph": "X", "cat": ["kernel"]}, {"ph": "M", "args": 1},
        {"ph": "M", "name": "process_name", "pid": [1], "args": {"name": "p"}},
        {"ph": "X", "cat": "kernel", "name": None, "ts": kineto.BASE_US, "dur": 1, "args": None},
        {"ph": "X", "cat": "kernel", "name": {"a": 1}, "ts": kineto.BASE_US + 9, "dur": 1,
         "args": {"device": "x", "stream": 1e300, "grid": "8", "correlation": 2**70}},
        {"ph": "X", "cat": "cpu_op", "name": "a", "ts": kineto.BASE_US, "dur": 1, "pid": {},
         "tid": 140735268345600},
    ]  # fmt: skip
    data, path = opened(tmp_path, kineto.document(odd + kineto.steps()))
    assert len(rows(data, path).kernels) >= 18


def test_operators_and_python_functions_are_exact_host_stacks(tmp_path: Path) -> None:
    """A function of 700 of 1000 µs a step is on 70 % of the stacks, an operator in it innermost."""
    events = kineto.steps(6)
    for n in range(6):
        begin = kineto.BASE_US + 1000.0 * n
        events += [
            kineto.event("python_function", "model.py(12): forward", begin + 100, 700.0, 77, 77),
            kineto.event("cpu_op", "aten::slow", begin + 200, 350.0, 77, 77),
            kineto.event("python_function", "idle.py(1): wait", begin, 1000.0, 77, 99),
        ]
    data, path = opened(tmp_path, kineto.document(events))
    (record,) = data.rounds
    with RunFileReader(path) as reader:
        found = reader.host_rows(record)
    assert found is not None
    main = [s for s in found.samples if s.tid == 77]
    names = {number: frame.function for number, frame in found.frames.items()}
    inside = [s for s in main if "forward" in {names[f] for f in s.stack}]
    innermost = [s for s in inside if names[s.stack[0]] == "aten::slow"]
    moments = (record.end_ns - record.start_ns) / found.sampled.tick_ns
    assert len(inside) / moments == pytest.approx(0.7, abs=0.02)
    assert len(innermost) / moments == pytest.approx(0.35, abs=0.02)
    forward = next(f for f in found.frames.values() if f.function == "forward")
    assert (forward.file, forward.line) == ("model.py", 12)
    assert {s.tid for s in found.samples} == {77, 99}
    assert RunTrace(path, data).engines[0].host is not None


def test_bfloat16_is_never_called_a_fixed_point_type() -> None:
    from llmprof.analysis.device.naming.kernel_names import demangle, short_name
    from llmprof.traces.demangling import demangled

    name = "_ZN5aiter9rope_funcEDF16b"
    for text in (demangled([name]).get(name, name), demangle(name)):
        assert "_Accum" not in text and short_name(text) == "rope_func"


def test_a_step_lasts_until_its_work_has_run(tmp_path: Path) -> None:
    """A host that waits for nothing has left its range before the device begins."""
    events = kineto.steps(1)
    for e in events:
        if e["cat"] == "kernel":
            e["ts"] += 5000.0
            e["name"] = f"{e['name']}_of_decode"
    events[0]["name"] = "execute_context_0(0)_generation_4(4)"
    data, path = opened(tmp_path, kineto.document(events))
    (record,) = data.rounds
    kernels = rows(data, path).kernels
    assert len(kernels) == 3 and record.steps == 1
    assert list(record.stamps_ns) == [1000, int(kernels.end_ns.max())]
    (trace,) = RunTrace(path, data).engines
    assert [s.kernels for s in trace.kernels.steps] == [3]


def test_ids_that_several_calls_have_say_nothing(tmp_path: Path) -> None:
    """Not one step with all the work: what launched it is not known, so time says."""
    events = kineto.steps(6)
    for e in events:
        if "correlation" in e["args"]:
            e["args"]["correlation"] = 7
    data, path = opened(tmp_path, kineto.document(events))
    assert "18 calls share their correlation ids" in said(data)
    (trace,) = RunTrace(path, data).engines
    assert [s.kernels for s in trace.kernels.steps] == [3] * 6


def test_kernels_without_a_time_do_not_stand_twice(tmp_path: Path) -> None:
    events = [{**e, "ts": 0, "dur": 0} if e["cat"] == "kernel" else e for e in kineto.steps()]
    data, _ = opened(tmp_path, kineto.document(events))
    assert "18 events with a negative, zero or no time" in said(data)
    assert "twice" not in said(data)


def test_deep_nesting_costs_one_event_at_most(tmp_path: Path) -> None:
    text = json.dumps(kineto.document(kineto.steps()))
    deep = '{"a":' * 50_000 + "1" + "}" * 50_000
    at = text.index('"args": {') + len('"args": {')
    data, path = opened(tmp_path, f'{text[:at]}"x": {deep}, {text[at:]}', "t.json")
    assert len(rows(data, path).kernels) == 18
    assert data.rounds[0].steps >= 5
    before = kineto.write(tmp_path / "before.json", f'{{"x": {deep}, {text[1:]}')
    with pytest.raises(RunFileError, match="holds no event"):
        readable(before)


def test_what_happened_on_the_host_alone_is_no_step(tmp_path: Path) -> None:
    """Nobody drove it, and collectives of the host are operators."""
    events = []
    for e in kineto.steps():
        if e["cat"] in ("cpu_op", "user_annotation"):
            gloo = e["cat"] == "user_annotation"
            events.append({**e, "name": "gloo:all_reduce" if gloo else e["name"]})
    data, _ = opened(tmp_path, kineto.document(events))
    assert {found.source for found in data.steps_found.values()} == {"none"}
    assert all(r.steps == 0 for r in data.rounds)
