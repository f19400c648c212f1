"""``--on gpus``: a worker a GPU, and no GPU for two."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nvml_stub
import pytest

from llmprof.runfile.reader import RunFileReader

pytest.importorskip("pyarrow")
pytest.importorskip("pynvml")
ASKED = ["--engine", "fake", "--rounds", "3", "--decode-len", "8", "--traced-steps", "0"]
UUIDS = [f"GPU-{n}{n}{n}{n}{n}{n}{n}{n}-aaaa-bbbb-cccc-00000000000{n}" for n in (1, 2)]


def two_gpus(tmp_path: Path, clean_env: dict[str, str], more: str = "") -> dict[str, str]:
    second = nvml_stub.H100.replace("gpu 0", "gpu 1").replace(
        "GPU-11111111-aaaa-bbbb-cccc-000000000000", UUIDS[1]
    )
    first = nvml_stub.H100.replace("GPU-11111111-aaaa-bbbb-cccc-000000000000", UUIDS[0])
    library = nvml_stub.build(tmp_path)
    made = nvml_stub.environment(library, tmp_path, first + second + more)
    # Sweeps of one host agree in its temporary folder.
    return {**made, **clean_env, "TMPDIR": str(tmp_path), **{
        key: made[key] for key in ("LD_LIBRARY_PATH", "NVML_STUB_SCENARIO", "NVML_STUB_CALLS")
    }}  # fmt: skip


def test_points_run_on_both_gpus_each_of_which_sees_one(llmprof, tmp_path, clean_env) -> None:
    env = two_gpus(tmp_path, clean_env)
    done = llmprof("sweep", *ASKED, "--context", "8,16,24,32", "--on", "gpus", "-o", "s", env=env)
    assert done.returncode == 0, done.stderr
    assert "4 points on GPU 0, GPU 1" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "s" / "points.jsonl").open()]
    assert {line["node"].partition(" ")[2] for line in lines} == {"GPU 0", "GPU 1"}
    for line in lines:
        with RunFileReader(tmp_path / "s" / line["run_file"]) as reader:
            data = reader.run_data()
        number = int(line["node"][-1])
        assert data.engines[0].info.notes == [f"sees {UUIDS[number]}"]
        assert [gpu.uuid for gpu in data.gpu_devices] == [UUIDS[number]]


def test_a_gpu_is_never_shared(llmprof, tmp_path, clean_env) -> None:
    env = two_gpus(tmp_path, clean_env)
    first = subprocess.Popen(
        [sys.executable, "-m", "llmprof", "sweep", "--engine", "fake:sleep_us=100000",
         "--context", "8,16", "--rounds", "500", "--traced-steps", "0", "--on", "gpus", "-o", "a"],
        cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not list((tmp_path / "a").glob("work/*/run.sqlite")) and time.monotonic() < end:
            time.sleep(0.05)
        asked = ["sweep", *ASKED, "--context", "8", "--on", "gpus", "-o", "b"]
        refused = llmprof(*asked, env=env)
        assert refused.returncode == 3
        assert refused.stderr == (
            "llmprof: --on gpus: GPU 0 is taken by another sweep; leave it out with"
            " CUDA_VISIBLE_DEVICES\n"
        )
    finally:
        first.kill()
        first.wait()
    # The lock went with its process.
    assert llmprof(*asked, env={**env, "CUDA_VISIBLE_DEVICES": "1"}).returncode == 0


def test_a_gpu_that_computes_is_refused_and_can_be_left_out(llmprof, tmp_path, clean_env) -> None:
    env = two_gpus(tmp_path, clean_env, "gpu 1 process 4711 4712\n")
    asked = ["sweep", *ASKED, "--context", "8", "--on", "gpus", "-o", "s"]
    refused = llmprof(*asked, env=env)
    assert refused.returncode == 3
    assert "GPU 1 (NVIDIA H100 80GB HBM3) is used by process 4711, 4712" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "s").exists()
    assert llmprof(*asked, env={**env, "CUDA_VISIBLE_DEVICES": "0"}).returncode == 0


def test_a_host_without_a_gpu_says_so(llmprof, tmp_path, clean_env) -> None:
    asked = ["sweep", *ASKED, "--context", "8", "--on", "gpus", "-o", "s"]
    env = two_gpus(tmp_path, clean_env)
    none = llmprof(*asked, env={**env, "CUDA_VISIBLE_DEVICES": ""})
    assert none.returncode == 2 and "no GPU is visible here" in none.stderr
    bare = llmprof(*asked, env={"NVML_STUB_SCENARIO": "", "TMPDIR": tempfile.gettempdir()})
    assert bare.returncode == 2 and bare.stderr.startswith("llmprof: --on gpus: ")
    assert len(bare.stderr.splitlines()) == 1
