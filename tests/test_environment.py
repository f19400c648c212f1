"""The environment block, of this machine and of trees laid out as other machines have them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import nvml_stub
import pytest

from llmprof import environment, machine
from llmprof.records import GpuDevice, Unavailable


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def nulls(value: Any) -> list[Any]:
    """Every dict that stands for a missing value, and every bare null (there must be none)."""
    if isinstance(value, dict):
        if set(value) == {"value", "reason"}:
            return [value]
        return [found for inner in value.values() for found in nulls(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in nulls(inner)]
    return [value] if value is None else []


def test_this_machine_is_described_and_gaps_have_reasons() -> None:
    block = json.loads(json.dumps(environment.collect(Unavailable("no GPU here"))))
    assert abs(datetime.fromisoformat(block["utc"]) - datetime.now(timezone.utc)) < timedelta(
        hours=1
    )
    assert block["gpus"] == block["driver"] == {"value": None, "reason": "no GPU here"}
    assert 0 < block["cpu"]["usable_cores"] <= block["cpu"]["affinity_cores"]
    assert block["ram_mib"] > 0
    assert block["python"]["executable"] == sys.executable
    block["cpu"].pop("quota_cores")  # no quota is a fact, not a gap
    assert all(isinstance(gap, dict) and gap["reason"] for gap in nulls(block))


def test_gpus_carry_their_peak_and_the_driver_its_versions(tmp_path: Path) -> None:
    library = nvml_stub.build(tmp_path)
    code = (
        "import json; from llmprof import environment;"
        "from llmprof.tracers.nvml.tracer import NvmlTracer;"
        "t = NvmlTracer(); block = environment.collect(t.devices()); t.stop();"
        "print(json.dumps(block))"
    )
    env = nvml_stub.environment(library, tmp_path, nvml_stub.H100, CUDA_VISIBLE_DEVICES="0")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    block = json.loads(done.stdout)
    assert block["driver"] == {"driver": "580.159.04", "cuda": "13.0", "nvml": "13.580.159.04"}
    (gpu,) = block["gpus"]
    assert gpu["name"] == "NVIDIA H100 80GB HBM3"
    assert gpu["peak_bandwidth_gb_s"] == pytest.approx(3352.3, abs=0.1)
    assert gpu["sm_count"]["value"] is None
    assert block["variables"]["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_gpu_without_a_bus_width_has_no_peak() -> None:
    (row,) = environment.collect([GpuDevice(0, "x", "GPU-1", max_mem_clock_mhz=2619)])["gpus"]
    assert row["peak_bandwidth_gb_s"]["value"] is None
    assert row["max_mem_clock_mhz"] == 2619


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
            },
            0.5,
        ),
        (  # version 1, the path is the host's, the mount is the container's own
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    root = put(tmp_path, files)
    assert machine.quota_cores(root) == expected
    usable = machine.cpu(root)["usable_cores"]
    affinity = machine.cpu(root)["affinity_cores"]
    assert usable == (affinity if expected is None else min(affinity, expected))


def test_hyperthreads_are_no_cores_and_control_characters_no_text(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu"
    files = {
        f"{cpus}/cpu{n}/topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}\n" for n in range(4)
    }
    files |= {f"{cpus}/cpu{n}/cpufreq/scaling_governor": "powersave\n" for n in range(512)}
    files["proc/cpuinfo"] = "processor : 0\nmodel name\t: Some \x1b[31mCPU\n"
    found = machine.cpu(put(tmp_path, files))
    assert found["physical_cores"] == 2
    assert found["governor"] == "powersave"
    assert found["model"] == "Some \\x1b[31mCPU"


def test_what_a_bare_tree_lacks_has_a_reason(tmp_path: Path) -> None:
    found = machine.cpu(tmp_path)
    for key in ("model", "physical_cores", "governor"):
        assert found[key]["value"] is None
        assert found[key]["reason"]
    assert machine.ram_mib(tmp_path)["value"] is None


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, None),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/1/cgroup": "0::/kubepods/besteffort/pod1\n"}, "kubernetes"),
        ({"proc/self/cgroup": "4:cpu:/lxc/box\n"}, "lxc"),
    ],
)
def test_containers(tmp_path: Path, files: dict[str, str], kind: str | None) -> None:
    root = put(tmp_path, files)
    assert machine.container_kind(root) == kind
    described = machine.container(root)
    assert described["kind"] == (kind or "none seen")
    assert ("image_digest" in described) == (kind is not None)


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    package = put(tmp_path, {"llmprof/__init__.py": ""}) / "llmprof"
    assert environment.tool_commit(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    assert environment.tool_commit(package) is None  # nothing is committed yet
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    commit = environment.tool_commit(package)
    assert commit is not None
    assert len(commit) == 40
    (package / "__init__.py").write_text("changed = True\n")
    assert environment.tool_commit(package) == f"{commit}-dirty"


def test_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert environment.tool_commit(tmp_path / "llmprof") is None


def cgroup2(root: Path, quota: str) -> Path:
    return put(root, {"proc/self/cgroup": "0::/me\n", "sys/fs/cgroup/me/cpu.max": quota})


def test_default_threads_fit_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    siblings = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    put(tmp_path, {topology.format(n): text for n, text in siblings.items()})
    for quota, threads in {
        "max 100000": 2,
        "50000 100000": 1,
        "150000 100000": 1,
        "200000 100000": 2,
        "390000 100000": 2,
    }.items():
        assert machine.default_threads(cgroup2(tmp_path, quota)) == threads, quota
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2})
    assert machine.default_threads(cgroup2(tmp_path, "max 100000")) == 1


def test_pools_sleep_only_where_somebody_takes_their_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    alone = put(cgroup2(tmp_path / "a", "max 100000"), {"proc/stat": "procs_running 1\n"})
    assert machine.worker_variables({}, alone) == {}
    crowded = put(cgroup2(tmp_path / "b", "max 100000"), {"proc/stat": "procs_running 4\n"})
    found = machine.worker_variables({}, crowded)
    assert found["OMP_WAIT_POLICY"] == "passive" and "OMP_NUM_THREADS" not in found
    assert machine.worker_variables({"OMP_WAIT_POLICY": "active"}, crowded) == {}
    limited = put(cgroup2(tmp_path / "c", "50000 100000"), {"proc/stat": "procs_running 1\n"})
    found = machine.worker_variables({"MKL_NUM_THREADS": "2"}, limited)
    assert found["OMP_NUM_THREADS"] == "1" and found["KMP_BLOCKTIME"] == "0"
    assert "MKL_NUM_THREADS" not in found
    assert machine.worker_variables({}, cgroup2(tmp_path / "d", "max 100000")) == {}
