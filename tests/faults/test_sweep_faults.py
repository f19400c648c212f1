"""What a sweep keeps: a full disk, a lost GPU, no memory, the clock set back, two at once.

What has ended is in the journal, and the same command goes on with the rest. The kill -9 stands in
``tests/sweep/test_sweep_command.py``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import nvml_stub
import pytest
from test_fault_matrix import (
    Environment,
    clock_back,
    ended,
    no_more_memory,
    small_disk,
    start,
    until,
)

from llmprof.analysis.view.opening import open_run

pytest.importorskip("pyarrow")
__all__ = ["clock_back"]

SHORT = ["--rounds", "2", "--decode-len", "8", "--traced-steps", "0"]
POINTS = ["--engine", "fake:prefill_us=30000", "--context", "8,16", *SHORT]


def journal(folder: Path) -> list[dict]:
    """Whole lines; one that does not parse fails the test."""
    try:
        lines = (folder / "points.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def sweep(environment: Environment, folder: Path, *arguments: str, to: str = "s"):  # type: ignore[no-untyped-def]
    return start(environment, folder, "sweep", *arguments, "-o", to)


def finished(folder: Path, points: int = 2) -> list[dict]:
    found = journal(folder)
    assert len(found) == len({line["point_id"] for line in found}) == points
    assert {line["state"] for line in found} == {"done"}
    return found


def test_a_sweep_with_the_clock_set_back(
    tmp_path: Path, clean_env: Environment, clock_back: Environment
) -> None:
    code, _, said = ended(sweep({**clean_env, **clock_back}, tmp_path, *POINTS))
    assert code == 0, said
    for line in finished(tmp_path / "s"):
        assert 0 < line["seconds"] < 120
        assert line["rows"][0]["tok_s"] > 0


def test_a_sweep_on_a_full_disk_goes_on_with_it(tmp_path: Path, clean_env: Environment) -> None:
    with small_disk(tmp_path / "small", "300k") as disk:
        code, _, said = ended(sweep(clean_env, disk, *POINTS))
        assert code != 0 and "disk" in said.lower(), said
        done = [line for line in journal(disk / "s") if line["state"] == "done"]
        assert len(done) < 2
        for line in done:  # what it says is done is there as a whole
            assert (disk / "s" / line["run_file"]).is_file()
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        code, _, said = ended(sweep(clean_env, disk, *POINTS))
        assert code == 0, said
        states = {line["point_id"]: line["state"] for line in journal(disk / "s")}
        assert list(states.values()) == ["done"] * 2


def test_a_sweep_with_an_engine_out_of_memory(tmp_path: Path, clean_env: Environment) -> None:
    """Its point says so; the other engine's numbers are kept."""
    asked = ["--engine", "fake", "--engine", "fake:hog_at=9", "--context", "8", *SHORT]
    code, _, said = ended(sweep(clean_env, tmp_path, *asked))
    assert code == 3 and "out of memory" in said, said  # no point is done
    (line,) = journal(tmp_path / "s")
    good, bad = line["rows"]
    assert line["state"] == "failed" and good["tok_s"] > 0
    assert "out of memory" in bad["reason"]


def test_a_sweep_out_of_memory_itself(tmp_path: Path, clean_env: Environment) -> None:
    process = sweep(clean_env, tmp_path, *POINTS)
    until(lambda: journal(tmp_path / "s"))
    no_more_memory(process.pid)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    code, _, _ = ended(process)
    before = journal(tmp_path / "s")
    assert code in (0, 1, 3, 130) and before[0]["state"] == "done"
    code, _, said = ended(sweep(clean_env, tmp_path, *POINTS, "--retry", "failed"))
    assert code == 0, said
    states = {line["point_id"]: line["state"] for line in journal(tmp_path / "s")}
    assert list(states.values()) == ["done"] * 2
    assert before[0] in journal(tmp_path / "s")  # not run again


def test_two_sweeps_at_once(tmp_path: Path, clean_env: Environment) -> None:
    """Into one folder one runs and one is refused; into folders of their own both are whole."""
    started = [sweep(clean_env, tmp_path, *POINTS, to=to) for to in ("a", "same", "same")]
    codes = [ended(process) for process in started]
    assert codes[0][0] == 0
    assert sorted(code for code, _, _ in codes[1:]) in ([0, 2], [0, 3])
    refused = next(said for code, _, said in codes[1:] if code)
    assert refused.count("\n") <= 2 and "same" in refused, refused
    finished(tmp_path / "a")
    finished(tmp_path / "same")


def test_a_sweep_loses_its_gpu(tmp_path: Path, clean_env: Environment) -> None:
    """NVML's answer from a stub: the points go on, their runs say why samples end."""
    library = nvml_stub.build(tmp_path)
    scenario = nvml_stub.H100 + "gpu 0 lost_after 2\n"
    environment = nvml_stub.environment(library, tmp_path, scenario, **clean_env)
    code, _, said = ended(sweep(environment, tmp_path, *POINTS))
    assert code == 0, said
    for line in finished(tmp_path / "s"):
        data = open_run(tmp_path / "s" / line["run_file"])
        assert "lost the GPU" in (data.why_missing("gpu0", "nvml") or "")
