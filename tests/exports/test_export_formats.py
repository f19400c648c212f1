"""``llmprof export``: every format is read back by a program that others wrote."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import nsys_readers
import pytest
from nsys_truth import Truth, make

from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.errors import MissingPackage, RunFileError, UsageError
from llmprof.exports import formats
from llmprof.exports.formats import FORMATS, default_output, export_runs
from llmprof.exports.json import schema
from llmprof.runfile import schema as tables
from llmprof.runfile.reader import RunFileReader

H100 = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NSYS = shutil.which("nsys")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    file = tmp_path_factory.mktemp("export") / "truth.sqlite"
    return file, make(file)


def kernels_of(truth: Truth) -> Counter[tuple[int, int]]:
    """(start, length) of every kernel, since the start of the run."""
    t0 = truth.data.info.t0_ns
    return Counter((k.start - t0, k.ns) for k in truth.kernels)


def test_the_command_line(llmprof: Any, tmp_path: Path) -> None:
    from llmprof.cli.subcommands import EXPORTS

    assert tuple(FORMATS) == EXPORTS
    done = llmprof("export", str(H100), "--to", "csv", "-o", "tables")
    assert (done.returncode, done.stderr) == (0, "llmprof: wrote tables\n")
    assert (tmp_path / "tables" / "kernels.csv").is_file()
    again = llmprof("export", str(H100), "--to", "csv", "-o", "tables")
    assert again.returncode == 2 and again.stderr.count("\n") == 1


def test_default_names_never_hit_the_input() -> None:
    source = Path("/data/run.sqlite")
    names = {to: default_output(source, to).name for to in FORMATS}
    assert source.name not in names.values()
    assert len(set(names.values())) == len(FORMATS)


def test_nothing_is_overwritten_and_nothing_is_left(tmp_path: Path) -> None:
    there = tmp_path / "there.html"
    there.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        export_runs([H100], "html", there)
    with pytest.raises(UsageError, match="does not exist"):
        export_runs([H100], "html", tmp_path / "no" / "x.html")
    with pytest.raises(UsageError, match="no format 'pdf'"):
        export_runs([H100], "pdf", tmp_path / "x.pdf")
    with pytest.raises(RunFileError):
        export_runs([there], "html", tmp_path / "x.html")
    assert there.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["there.html"]


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(formats, "import_module", absent)
    with pytest.raises(MissingPackage, match=r"pip install .*\[export\]'"):
        export_runs([H100], "perfetto", tmp_path / "x")


def test_perfetto_by_its_own_classes(made: tuple[Path, Truth], tmp_path: Path) -> None:
    protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    file, truth = made
    trace = protos.Trace()
    trace.ParseFromString(export_runs([file], "perfetto", tmp_path / "x").read_bytes())
    names: dict[int, str] = {}
    parents: dict[int, int] = {}
    open_slices: dict[int, list[tuple[int, str]]] = defaultdict(list)
    slices: list[tuple[str, int, int, str]] = []
    texts: dict[int, str] = {}
    events = []
    for packet in trace.packet:
        for entry in packet.interned_data.event_names:
            texts[entry.iid] = entry.name
        if packet.HasField("track_descriptor"):
            names[packet.track_descriptor.uuid] = packet.track_descriptor.name
            parents[packet.track_descriptor.uuid] = packet.track_descriptor.parent_uuid
        elif packet.HasField("track_event"):
            events.append((packet.timestamp, packet.track_event))
    counters = 0
    for time, event in sorted(events, key=lambda item: item[0]):
        if event.type == protos.TrackEvent.TYPE_COUNTER:
            counters += 1
        elif event.type == protos.TrackEvent.TYPE_SLICE_BEGIN:
            open_slices[event.track_uuid].append((time, texts[event.name_iid]))
        else:
            start, name = open_slices[event.track_uuid].pop()
            slices.append((names[event.track_uuid], start, time - start, name))
    assert not any(open_slices.values())
    got = Counter(
        (start, ns) for track, start, ns, name in slices
        if track.startswith("stream") and not name.startswith("[")
    )  # fmt: skip
    assert got == kernels_of(truth)
    steps = sum(1 for track, _, _, name in slices if track == "rounds" and "decode" in name)
    assert steps == sum(r.steps for r in truth.data.rounds)
    assert counters > 10
    assert {names[parents[uuid]] for uuid, name in names.items() if name == "rounds"} == {
        "torch",
        "llamacpp",
    }


def test_chrome_events_nest_and_are_complete(made: tuple[Path, Truth], tmp_path: Path) -> None:
    file, truth = made
    document = json.loads(export_runs([file], "chrome", tmp_path / "x").read_text())
    events = document["traceEvents"]
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"
    }
    got = Counter(
        (round(e["ts"] * 1000), round(e["dur"] * 1000)) for e in events
        if e["ph"] == "X" and threads[e["pid"], e["tid"]].startswith("stream")
        and not e["name"].startswith("[")
    )  # fmt: skip
    assert got == kernels_of(truth)
    assert {e["ph"] for e in events} == {"X", "M", "C"}


READ_PARQUET = """
import json, sys
import pyarrow.parquet as parquet
table = parquet.read_table(sys.argv[1])
rows = list(zip(table["start"].to_pylist(), table["end"].to_pylist()))
print(json.dumps([rows, str(table.schema.field("start").type)]))
"""


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_by_pyarrow(made: tuple[Path, Truth], tmp_path: Path, llmprof: Any) -> None:
    """Writer and reader in processes of their own: they share nothing but the files."""
    file, truth = made
    done = llmprof("export", str(file), "--to", "parquetdir", "-o", "x.parquetdir")
    assert done.returncode == 0, done.stderr
    table = tmp_path / "x.parquetdir" / "CUPTI_ACTIVITY_KIND_KERNEL.parquet"
    read = subprocess.run(
        [sys.executable, "-c", READ_PARQUET, str(table)], capture_output=True, text=True, check=True
    )
    rows, kind = json.loads(read.stdout)
    assert Counter((start, end - start) for start, end in rows) == kernels_of(truth)
    assert kind == "int64"


@pytest.mark.skipif(NSYS is None, reason="nsys is not installed")
def test_one_copy_and_a_merge_by_nsys(made: tuple[Path, Truth], tmp_path: Path) -> None:
    file, truth = made
    copy = export_runs([file], "nsys", tmp_path / "copy.sqlite")
    rows = nsys_readers.stats(str(NSYS), "cuda_gpu_kern_sum", copy)
    got, wanted = nsys_readers.kernels(rows, truth)
    assert got == wanted
    with RunFileReader(copy) as reader:
        assert reader.is_llmprof()
    merged = export_runs([file, H100, copy], "nsys", tmp_path / "merged.sqlite")
    twice = nsys_readers.stats(str(NSYS), "cuda_gpu_kern_sum", merged)
    found = {r["Name"]: (int(r["Instances"]), int(r["Total Time (ns)"])) for r in twice}
    for name, (count, ns) in truth.sums(truth.kernels).items():
        assert found[name] == (2 * count, 2 * ns)
    launches = nsys_readers.stats(str(NSYS), "cuda_kern_exec_sum", merged)
    assert sum(int(r["Count"]) for r in launches) == 2 * len(truth.kernels)


def test_a_merge_keeps_the_wall_clock(made: tuple[Path, Truth], tmp_path: Path) -> None:
    file, truth = made
    later = tmp_path / "later.sqlite"
    shutil.copyfile(file, later)
    with closing(sqlite3.connect(later)) as db:
        db.execute("UPDATE TARGET_INFO_SESSION_START_TIME SET utcEpochNs = utcEpochNs + 5000")
        db.commit()
    merged = export_runs([later, file], "nsys", tmp_path / "merged.sqlite")
    with closing(sqlite3.connect(merged)) as db:
        rows = db.execute('SELECT start, "end" - start FROM CUPTI_ACTIVITY_KIND_KERNEL').fetchall()
        assert db.execute(
            "SELECT count(DISTINCT correlationId) FROM CUPTI_ACTIVITY_KIND_KERNEL"
        ).fetchone()[0] == len(rows)
    alone = kernels_of(truth)
    moved = Counter({(start + 5000, ns): n for (start, ns), n in alone.items()})
    assert Counter(rows) == alone + moved


def test_every_process_of_every_input_stays_an_engine(tmp_path: Path) -> None:
    """The same file twice, and merged files merged again: nothing falls together."""
    before = H100
    with closing(sqlite3.connect(H100)) as db:
        (kernels,) = db.execute("SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
        (engines,) = db.execute("SELECT count(*) FROM PROCESSES").fetchone()
    for times in (2, 4):
        merged = export_runs([before, before], "nsys", tmp_path / f"{times}.sqlite")
        data = open_run(merged)
        assert len({e.label for e in data.engines}) == len(data.engines) == times * engines
        counts = [len(t.kernel_rows) for t in RunTrace(merged, data).engines if t.pid and
                  hasattr(t, "kernel_rows")]  # fmt: skip
        with closing(sqlite3.connect(merged)) as db:
            found = db.execute(
                "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL GROUP BY globalPid"
            ).fetchall()
        assert sum(n for (n,) in found) == times * kernels
        assert len(counts) == len(found)
        before = merged


def test_a_merge_keeps_the_host_stacks_of_all(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        file = tmp_path / f"{number}.sqlite"
        shutil.copyfile(H100, file)
        with closing(sqlite3.connect(file)) as db:
            for name in ("COMPOSITE_EVENTS", "SAMPLING_CALLCHAINS"):
                for statement in tables.statements()[name]:
                    if not db.execute(
                        "SELECT 1 FROM sqlite_master WHERE name = ?", (name,)
                    ).fetchone():
                        db.execute(statement)
            db.execute(
                "INSERT INTO COMPOSITE_EVENTS (id, start, globalTid, cpuCycles) VALUES (1, 5, 7, 0)"
            )
            db.execute(
                "INSERT INTO SAMPLING_CALLCHAINS (id, symbol, module, stackDepth)"
                " VALUES (1, 1, 1, 0)"
            )
            db.commit()
        files.append(file)
    merged = export_runs(files, "nsys", tmp_path / "m.sqlite")
    with closing(sqlite3.connect(merged)) as db:
        rows = db.execute(
            "SELECT e.id, e.globalTid >> 56, c.symbol FROM COMPOSITE_EVENTS e"
            " JOIN SAMPLING_CALLCHAINS c ON c.id = e.id ORDER BY e.id"
        ).fetchall()
    assert len(rows) == 2 and len({r[0] for r in rows}) == 2 and [r[1] for r in rows] == [0, 1]


def test_csv_by_the_csv_module(made: tuple[Path, Truth], tmp_path: Path) -> None:
    file, truth = made
    folder = export_runs([file], "csv", tmp_path / "x")
    with (folder / "steps.csv").open(newline="") as text:
        steps = list(csv.DictReader(text))
    assert len(steps) == sum(r.steps for r in truth.data.rounds)
    with (folder / "kernels.csv").open(newline="") as text:
        kernels = list(csv.DictReader(text))
    decoding = [k for k in truth.kernels if k.inside != "llmprof:prefill"]
    assert sum(int(k["count"]) for k in kernels if k["category"] != "copy") == len(decoding)


def test_json_is_the_document(made: tuple[Path, Truth], tmp_path: Path) -> None:
    file, _ = made
    document = json.loads(export_runs([file], "json", tmp_path / "x").read_text())
    jsonschema.validate(document, json.loads(schema.text()))


def test_markdown_tables_are_whole(tmp_path: Path) -> None:
    text = export_runs([H100], "markdown", tmp_path / "x").read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables
    width = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert width in (0, cells)
        width = cells


class _Resources(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(v) for k, v in attrs if k in ("src", "href", "data", "srcset")]


def test_html_fetches_nothing_and_runs_nothing_from_names(tmp_path: Path) -> None:
    evil = tmp_path / "evil.sqlite"
    shutil.copyfile(H100, evil)
    script = "</script><script>document.title='owned'</script><img src=x onerror=1>"
    with closing(sqlite3.connect(evil)) as db:
        db.execute("UPDATE StringIds SET value = ? || id || '()'", (script,))
        db.commit()
    page = export_runs([evil], "html", tmp_path / "x.html").read_text()
    assert script not in page
    parser = _Resources()
    parser.feed(page)
    assert parser.found == []
    assert "http://" not in page and "https://" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_html_in_a_browser(tmp_path: Path) -> None:
    """Rendered without network; a picture is made, and the numbers are on the page."""
    page = export_runs([H100], "html", tmp_path / "x.html")
    picture = tmp_path / "x.png"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1240,1700",
    ]  # fmt: skip
    env = {**os.environ, "HOME": str(tmp_path)}

    def ask(*more: str) -> str:
        done = subprocess.run(
            [*command, *more, page.as_uri()], capture_output=True, text=True, timeout=120, env=env,
            check=False,
        )  # fmt: skip
        return done.stdout

    dom = ask("--dump-dom")
    assert 'data-ready="yes"' in dom and "Timelines on one axis" in dom and "95.9 tok/s" in dom
    assert "By purpose, ms a step" in dom and "What would make a token cheaper" in dom
    ask(f"--screenshot={picture}")
    assert picture.stat().st_size > 20_000
