"""The whole path with engines of known behaviour: real processes, real run files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmprof.exports.json.schema import text as schema_text

APART = ("sleep_us=1000", "sleep_us=30000")
"""A busy machine is late by milliseconds: steps so far apart that it cannot hide which is which."""
FEW = ["--prompt-len", "8", "--decode-len", "8", "--rounds", "6", "--traced-steps", "8"]
QUICK = ["--prompt-len", "8", "--decode-len", "24", "--rounds", "6", "--traced-steps", "8"]


def fakes(*options: str) -> list[str]:
    return [part for option in options for part in ("--engine", f"fake:{option}")]


def document(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def run_file(done: subprocess.CompletedProcess[str]) -> Path:
    match = re.search(r"run file (.*\.sqlite)", done.stderr)
    assert match, done.stderr
    return Path(match[1])


def test_two_engines_are_compared_and_the_document_fits_its_schema(llmprof) -> None:
    import jsonschema

    done = llmprof("--json", *fakes(*APART), *FEW)
    assert done.returncode == 0, done.stderr
    found = document(done)
    jsonschema.validate(found, json.loads(schema_text()))
    pair = found["pairs"][0]
    assert pair["difference_seen"]
    assert pair["tok_s_ratio"]["high"] < 1
    assert [engine["state"] for engine in found["engines"]] == ["finished", "finished"]
    again = llmprof("--headless", "--json", "--from", str(run_file(done)))
    assert again.returncode == 0
    assert document(again)["pairs"] == found["pairs"]


def test_two_runs_agree_within_their_intervals(llmprof) -> None:
    pairs = [
        document(llmprof("--json", *fakes(*APART), *FEW))["pairs"][0]["tok_s_ratio"]
        for _ in range(2)
    ]
    assert pairs[0]["low"] <= pairs[1]["high"]
    assert pairs[1]["low"] <= pairs[0]["high"]


def test_same_ids_for_every_engine_and_the_same_tokens_for_the_same_weights(llmprof) -> None:
    done = llmprof("--json", *fakes("weights=w", "weights=w", "weights=w,offset=1"), *QUICK)
    agreement = {(row["a"], row["b"]): row for row in document(done)["agreement"]}
    same = agreement["fake:weights=w", "fake:weights=w#2"]
    assert same["common_prefix"] == 25
    assert agreement["fake:weights=w", "fake:weights=w,offset=1"]["common_prefix"] == 0


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        ("crash_at=40", "crash", "SIGKILL"),
        ("exit_at=40", "crash", "last output: fake: giving up"),
        ("raise_at=40", "exception", r"a bug in \x1b[31mthe engine"),
        ("oom_at=0", "oom", "needs 9000 MiB"),
        ("colour=red", "input", "unknown option 'colour'"),
    ],
)
def test_a_failing_engine_ends_alone(llmprof, option: str, kind: str, words: str) -> None:
    done = llmprof("--json", *fakes("step_us=100", f"step_us=100,{option}"), *QUICK)
    assert done.returncode == 1, done.stderr
    good, bad = document(done)["engines"]
    assert good["state"] == "finished"
    assert bad["state"] == "failed"
    assert bad["failure"]["kind"] == kind
    assert words in bad["failure"]["message"]
    assert words in done.stderr
    assert "fake: fake" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_crash_keeps_the_steps_that_were_made(llmprof) -> None:
    done = llmprof("--json", *fakes("step_us=300,crash_at=80"), *QUICK)
    assert done.returncode == 3
    rounds = document(llmprof("--json", "--from", str(run_file(done))))["engines"][0]
    assert rounds["state"] == "failed"


def test_a_hang_is_a_failure_with_its_reason(llmprof) -> None:
    done = llmprof("--headless", "--timeout", "1", *fakes("hang_at=30"), *QUICK)
    assert done.returncode == 3
    assert "no sign of life for 1 s" in done.stderr


def test_engines_that_do_not_fit_together_run_in_blocks(llmprof, tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    locks.mkdir()
    done = llmprof(
        "--json",
        *fakes("oom_unless_alone=1", "oom_unless_alone=1"),
        *QUICK,
        env={"LLMPROF_FAKE_LOCKS": str(locks)},
    )
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert found["run"]["schedule"] == "blocks"
    assert any("do not fit into memory together" in w["text"] for w in found["warnings"])


def test_a_free_running_engine_has_no_itl(llmprof) -> None:
    done = llmprof("--json", "--engine", "freerunning:step_us=200", *QUICK)
    assert done.returncode == 0, done.stderr
    engine = document(done)["engines"][0]
    assert 0 < engine["tok_s"]["median"] < 5100  # a step busy-waits 200 µs
    assert engine["itl_ms"] is None
    assert "runs free" in engine["itl_ms_reason"]


def test_the_worker_runs_under_an_interpreter_without_llmprof(llmprof, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    done = llmprof("--json", "--engine", f"fake@{python}:step_us=100", *QUICK)
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert any("nvtx" in row["name"] for row in found["unavailable"])


def test_the_engine_of_the_docs_is_listed_and_runs(llmprof, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "writing-an-engine.md").read_text()
    code, entry = re.findall(r"```(?:python|toml)\n(.*?)```", page, re.S)
    package = tmp_path / "package"
    info = package / "counting-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "counting.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    target = re.search(r'counting = "(.*)"', entry)[1]
    (info / "entry_points.txt").write_text(f"[llmprof.engines]\ncounting = {target}\n")
    env = {"PYTHONPATH": str(package)}
    assert "counting" in llmprof("engines", env=env).stdout
    done = llmprof("--json", "--engine", "counting:step_us=500", *QUICK, env=env)
    assert done.returncode == 0, done.stderr
    assert document(done)["engines"][0]["info"]["versions"] == {"counting": "1.0"}


def start(
    tmp_path: Path, env: dict[str, str], *arguments: str, engine: str = "step_us=5000"
) -> subprocess.Popen[str]:
    """A run whose rounds take long enough to be hit in the middle."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmprof", "--headless", "-o", str(tmp_path / "run.sqlite"),
         *fakes(engine), "--prompt-len", "4", "--decode-len", "20",
         "--rounds", "500", "--traced-steps", "0", *arguments],
        env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_rounds(file: Path, count: int) -> None:
    from llmprof.errors import RunFileError
    from llmprof.runfile.reader import RunFileReader

    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.1)
        if file.exists() and file.stat().st_size:
            try:
                with RunFileReader(file) as reader:
                    if len(reader.run_data().rounds) >= count:
                        return
            except RunFileError:
                pass  # it is being written
    raise AssertionError(f"{file} never had {count} rounds")


def workers_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"LLMPROF_PARENT={pid}\0".encode() in environ:
                found.append(int(entry.name))
    return found


def wait_gone(pids: list[int]) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and
                   Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):  # fmt: skip
            return
        time.sleep(0.05)
    raise AssertionError(f"still alive: {pids}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, clean_env: dict[str, str], llmprof, number: signal.Signals
) -> None:
    process = start(tmp_path, clean_env)
    file = tmp_path / "run.sqlite"
    wait_for_rounds(file, 2)
    workers = workers_of(process.pid)
    assert workers
    process.send_signal(number)
    process.send_signal(number)  # as timeout(1) does: to its child, then to the group
    _, said = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    wait_gone(workers)
    found = document(llmprof("--json", "--from", str(file)))
    assert found["run"]["state"] == "interrupted"
    assert found["engines"][0]["tok_s"]["median"] > 0


def test_a_killed_parent_takes_its_workers_along_and_leaves_a_file_that_opens(
    tmp_path: Path, clean_env: dict[str, str], llmprof
) -> None:
    process = start(tmp_path, clean_env)
    file = tmp_path / "run.sqlite"
    wait_for_rounds(file, 3)
    workers = workers_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    wait_gone(workers)
    done = llmprof("--headless", "--json", "--from", str(file))
    found = document(done)
    assert found["run"]["state"] == "running"
    assert len(found["engines"][0]["tok_s"]["rounds"]) >= 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_the_file_opens(
    tmp_path: Path, clean_env: dict[str, str], llmprof
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        environment = {**clean_env, "HOME": str(tmp_path)}
        process = start(disk, environment, "--decode-len", "2000", engine="step_us=1")
        _, said = process.communicate(timeout=100)
        assert process.returncode == 2, said
        assert "disk" in said and "full" in said
        assert "Traceback" not in said
        done = llmprof("--headless", "--json", "--from", str(disk / "run.sqlite"))
        assert document(done)["engines"]
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
