"""Exports that nsys made: steps by an NVTX pattern, the same reports, nothing executed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import foreign_factory
import pytest
from foreign_factory import PAUSE, STEP, VERSIONS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.steps.candidates import matches
from llmprof.analysis.view.opening import open_run, step_candidates
from llmprof.analysis.view.traced import RunTrace
from llmprof.errors import LlmprofError, RunFileError, UsageError
from llmprof.records import (
    Unavailable,
)
from llmprof.records.steps import (
    StepChoice,
)
from llmprof.runfile.foreign.nsys_rep import readable
from llmprof.runfile.reader import RunFileReader

NSYS = shutil.which("nsys")


def change(path: Path, *changes: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in changes:
            db.execute(statement)
        db.commit()


def chosen(step_range: str | None) -> StepChoice:
    return StepChoice("ranges" if step_range else "auto", step_range)


def report(path: Path, step_range: str | None = None) -> KernelReport:
    data = open_run(path, chosen(step_range))
    kernels = RunTrace(path, data).engines[0].kernels
    assert not isinstance(kernels, Unavailable)
    return kernels


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("by_id", [False, True])
def test_every_version(tmp_path: Path, version: str, by_id: bool) -> None:
    file = tmp_path / "x.sqlite"
    made = foreign_factory.write(file, version, by_id=by_id)
    guess = step_candidates(file)[0]
    data = open_run(file)
    assert (guess.pattern, guess.ranges, guess.median_ns) == ("decode *", 10, STEP)
    assert data.info.tool_version == version
    (record,) = data.rounds
    lengths = [b - a for a, b in zip(record.stamps_ns, record.stamps_ns[1:], strict=False)]
    assert list(record.stamps_ns[:-1]) == made.starts
    assert lengths == [STEP + PAUSE] * 10
    found = report(file)
    assert found.method == "time" and found.scope == "10 decode steps"
    assert sum(k.count for k in found.kernels) == made.kernels
    assert sum(k.total_ns for k in found.kernels) == made.kernel_ns
    assert found.busy_ns == made.kernel_ns


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("ProfilerStep#{}", "ProfilerStep#*"),
        ("execute_model_context_0(0)_generation_{}(1)", None),
        ("gpu_model_runner: forward", "gpu_model_runner: forward"),
        ("Iteration {}", None),
    ],
)
def test_ranges_by_any_name(tmp_path: Path, text: str, pattern: str | None) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file, text=text)
    (best, *_) = step_candidates(file)
    assert pattern in (None, best.pattern)
    assert open_run(file).rounds[0].steps == 10
    assert open_run(file, chosen(best.pattern)).rounds[0].steps == 10


def test_no_guess_without_a_word_for_it(tmp_path: Path, llmprof: Any) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file, text="aten::addmm")
    data = open_run(file)
    assert data.rounds[0].steps == 0
    assert "--step-range" in data.warnings[0].text
    done = llmprof("--headless", "--from", str(file))
    assert done.returncode == 0 and "whole round" not in done.stderr
    assert "choose some with --step-range: aten::" in " ".join(done.stdout.split())
    asked = llmprof("--headless", "--from", str(file), "--steps", "none")
    assert asked.returncode == 0 and "(--steps none)" in " ".join(asked.stdout.split())
    wrong = llmprof("--headless", "--from", str(file), "--step-range", "nothing*")
    assert wrong.returncode == 2 and "there are: aten::" in wrong.stderr


def test_a_group_of_ranges_where_nothing_ran_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    change(file, 'UPDATE NVTX_EVENTS SET start = start - 40000000, "end" = "end" - 40000000'
           " WHERE \"text\" IN ('decode 1', 'decode 2')")  # fmt: skip
    data = open_run(file)
    assert [r.steps for r in data.rounds] == [8]
    trace = RunTrace(file, data)
    assert trace.engines[0].record == data.rounds[0]
    assert data.steps_found[0].left_out == ("2 steps in 1 group where nothing ran on a device",)


def test_compare_and_report_from_the_command_line(tmp_path: Path, llmprof: Any) -> None:
    foreign_factory.write(tmp_path / "a.sqlite")
    foreign_factory.write(tmp_path / "b.sqlite", "2022.4.2.1", per_step=10)
    done = llmprof("compare", "a.sqlite", "b.sqlite")
    assert done.returncode == 0 and "ms a step" in done.stdout, done.stderr
    shown = llmprof("--headless", "--from", "a.sqlite", "--json")
    assert shown.returncode == 0, shown.stderr
    before = (tmp_path / "a.sqlite").read_bytes()
    made = llmprof("export", "a.sqlite", "--to", "html", "-o", "a.html")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "a.sqlite").read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("a*")) == ["a.html", "a.sqlite"]


def test_the_document_follows_its_schema(tmp_path: Path, llmprof: Any) -> None:
    import json

    import jsonschema

    foreign_factory.write(tmp_path / "a.sqlite")
    document = json.loads(llmprof("--json", "--from", "a.sqlite").stdout)
    jsonschema.validate(document, json.loads(llmprof("schema").stdout))


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE StringIds"],
        ["DROP TABLE NVTX_EVENTS"],
        ["DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL"],
        ["DROP TABLE CUPTI_ACTIVITY_KIND_RUNTIME", "DROP TABLE PROCESSES"],
        ['UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = -5, "end" = -9'],
        ['UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET "end" = start - 1000'],
        ['UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET "end" = 9223372036854775807'],
        ["UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET globalPid = NULL"],
        ["ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN globalPid"],
        ["ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN demangledName"],
        ['UPDATE NVTX_EVENTS SET "end" = NULL'],
        ["UPDATE NVTX_EVENTS SET start = -start"],
        ["UPDATE NVTX_EVENTS SET globalTid = NULL"],
        ["UPDATE NVTX_EVENTS SET \"text\" = x'ff1b5b324a00'"],
        ["UPDATE StringIds SET value = '\x1b[2J''; DROP TABLE StringIds; --'"],
        ["DELETE FROM StringIds"],
        ["UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = 'now' WHERE rowid = 1"],
        ["DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL"],
        ["UPDATE PROCESSES SET name = '\x1b]0;owned\x07'"],
    ],
)
def test_odd_files_give_a_partial_view(tmp_path: Path, llmprof: Any, statements: list[str]) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    change(file, *statements)
    done = llmprof("--headless", "--from", "x.sqlite")
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET streamId = 1e300"],
        ["ALTER TABLE NVTX_EVENTS DROP COLUMN eventType"],
        ["ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN start TO began"],
        ["CREATE TRIGGER t AFTER INSERT ON NVTX_EVENTS BEGIN SELECT 1; END"],
        ["DROP TABLE PROCESSES",
         "CREATE VIEW PROCESSES AS SELECT 1 globalPid, 1 pid, 'x' name"],
        ["DROP TABLE StringIds", "CREATE VIRTUAL TABLE StringIds USING fts5(id, value)"],
    ],
)  # fmt: skip
def test_damage_and_code_are_one_clear_line(
    tmp_path: Path, llmprof: Any, statements: list[str]
) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    change(file, *statements)
    done = llmprof("--headless", "--from", "x.sqlite")
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1 and "x.sqlite" in done.stderr


def test_truncation(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunFileError, match="truncated"), RunFileReader(file) as reader:
        reader.run_data()


def test_a_schema_that_is_no_text(tmp_path: Path) -> None:
    """SQLite's own message about it cannot be decoded then."""
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file, steps=4, per_step=4)
    damage = bytearray(file.read_bytes())
    damage[2916:2921] = b"\0\0\0\0\x80"
    file.write_bytes(damage)
    with pytest.raises(RunFileError, match="damaged"):
        RunFileReader(file)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_corrupt_pages_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    good, file = tmp_path / "good.sqlite", tmp_path / "run.sqlite"
    if not good.exists():
        foreign_factory.write(good, steps=4, per_step=4)
    damage = bytearray(good.read_bytes())
    at = data.draw(st.integers(0, len(damage) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=64))
    damage[at : at + len(junk)] = junk
    file.write_bytes(damage)
    try:
        RunTrace(file, open_run(file))
    except LlmprofError as why:
        assert str(why).isprintable()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_a_pattern(pattern: str, text: str) -> None:
    matches("", text, pattern)
    matches("domain", text, pattern)


def test_nsys_rep_without_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report_file = tmp_path / "x.nsys-rep"
    with pytest.raises(UsageError, match="no such file"):
        readable(report_file)
    report_file.write_bytes(b"junk")
    with pytest.raises(UsageError, match="put it on PATH"):
        readable(report_file)
    foreign_factory.write(tmp_path / "x.sqlite")
    os.utime(report_file, (0, 0))
    assert readable(report_file) == tmp_path / "x.sqlite"


@pytest.mark.skipif(NSYS is None, reason="nsys is not installed")
def test_a_broken_nsys_rep(tmp_path: Path) -> None:
    (tmp_path / "x.nsys-rep").write_bytes(b"junk" * 100)
    with pytest.raises(UsageError, match="nsys export made no file"):
        readable(tmp_path / "x.nsys-rep")


HEADERS = Path("/usr/lib/x86_64-linux-gnu/nsight-systems/target-linux-x64/nvtx/include")
IMPORTER = Path("/usr/lib/nsight-systems/host-linux-x64/QdstrmImporter")
PROGRAM = """
#include <stdio.h>
#include <time.h>
#include <nvtx3/nvToolsExt.h>
int main(void) {
  char name[32];
  struct timespec nap = {0, 3000000};
  nvtxRangePushA("prefill"); nanosleep(&nap, 0); nvtxRangePop();
  for (int i = 1; i <= 12; i++) {
    snprintf(name, sizeof name, "decode %d", i);
    nvtxRangePushA(name); nanosleep(&nap, 0); nvtxRangePop();
  }
  return 0;
}
"""


@pytest.mark.skipif(
    NSYS is None or not HEADERS.is_dir() or not IMPORTER.exists() or shutil.which("gcc") is None,
    reason="needs Debian's nsight-systems and gcc",
)
def test_a_real_capture(tmp_path: Path) -> None:
    """A C program with NVTX ranges, recorded by Debian's nsys, opens with its ranges as steps."""
    (tmp_path / "prog.c").write_text(PROGRAM)

    def run(*command: str) -> None:
        subprocess.run(
            ["timeout", "-s", "KILL", "90", *command],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )

    run("gcc", f"-I{HEADERS}", "prog.c", "-o", "prog", "-ldl")
    options = ["-t", "nvtx", "--sample=none", "--cpuctxsw=none", "-f", "true", "-o", "cap"]
    run(str(NSYS), "profile", *options, "./prog")
    if not (tmp_path / "cap.nsys-rep").exists():  # Debian's layout: the importer is not found
        run(str(IMPORTER), "-i", "cap.qdstrm")
    if not (tmp_path / "cap.nsys-rep").exists():
        pytest.skip("nsys cannot profile here")
    data = open_run(readable(tmp_path / "cap.nsys-rep"))
    (record,) = data.rounds
    assert [e.label for e in data.engines] == ["prog"]
    assert record.steps == 12
    lengths = [b - a for a, b in zip(record.stamps_ns, record.stamps_ns[1:], strict=False)]
    assert all(3_000_000 <= ns < 1_000_000_000 for ns in lengths)
