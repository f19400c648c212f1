"""A Ray cluster of nodes that differ: accelerators, versions, a shared path, Ray's client, a death.

One cluster and one test, since a node takes Ray some seconds of a core to start, and pytest-xdist
may give two tests of a module to two processes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from ray_nodes import RayNodes

import llmprof as package
from llmprof.runfile.reader import RunFileReader

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytest.importorskip("pyarrow")

PLUGIN = Path(__file__).parents[1] / "support" / "plugin"
ROOT = Path(package.__file__).parents[1]
SHORT = ["--decode-len", "8", "--traced-steps", "0"]
H100 = {"accelerator_type:H100": 1.0}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_points_on_the_nodes_of_a_cluster(llmprof, tmp_path: Path) -> None:
    """Ray's own folder wants a short path for its sockets."""

    def sweep(*more: str, engine: str = "fake", **env: str) -> CompletedProcess[str]:
        rounds = [] if "--rounds" in more else ["--rounds", "2"]
        command = ["sweep", "--engine", engine, *SHORT, *rounds, *more]
        done: CompletedProcess[str] = llmprof(*command, env=env, timeout=300)
        return done

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        folder = Path(name)
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": name, "PYTHONPATH": f"{ROOT}:{PLUGIN}",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with RayNodes(environment, folder / "ray") as nodes:
            try:
                nodes.start(resources={"plain": 1})
            except RuntimeError as why:  # nothing of llmprof runs yet
                pytest.skip(f"Ray does not start on this machine: {str(why)[-300:]}")
            nodes.start(gpus=1, resources=H100)
            older = f"{_older(folder)}:{PLUGIN}"
            nodes.start(gpus=1, resources={"accelerator_type:A100": 1},
                        environment={"PYTHONPATH": older})  # fmt: skip
            _points_go_to_gpus(nodes, sweep, tmp_path / "gpus")
            _an_accelerator_that_no_node_has(nodes, sweep)
            _runs_stay_on_a_shared_path(nodes, sweep, tmp_path)
            _points_of_a_killed_node_run_elsewhere(nodes, sweep, tmp_path / "killed")


def _older(folder: Path) -> Path:
    """A llmprof of another version."""
    older = folder / "older"
    shutil.copytree(Path(package.__file__).parent, older / "llmprof")
    text = (older / "llmprof" / "__init__.py").read_text()
    assert package.__version__ in text
    (older / "llmprof" / "__init__.py").write_text(text.replace(package.__version__, "0.0.9"))
    return older


def journal(folder: Path) -> list[dict[str, Any]]:
    file = folder / "points.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().splitlines(True) if line[-1:] == b"\n"]


def _points_go_to_gpus(nodes: RayNodes, sweep, folder: Path) -> None:
    """And nodes that cannot run them are skipped with a reason."""
    asked = ["--context", "8,16", "-o", str(folder), "--on", "ray"]
    done = sweep(*asked, RAY_ADDRESS=nodes.address)
    assert done.returncode == 0, done.stderr
    assert "1 Ray nodes, 1 points at once" in done.stderr
    assert "has no GPU, while other nodes have" in done.stderr
    assert f"llmprof 0.0.9 there, {package.__version__} here" in done.stderr
    lines = journal(folder)
    assert {line["state"] for line in lines} == {"done"}
    assert all("(H100)" in line["node"] for line in lines)
    assert [row["load"] for line in lines for row in line["rows"]] == ["own", "shared"]


def _an_accelerator_that_no_node_has(nodes: RayNodes, sweep) -> None:
    asked = ["--context", "8", "-o", "none", "--on", "ray", "--accelerator", "B200"]
    done = sweep(*asked, RAY_ADDRESS=nodes.address)
    assert done.returncode == 2, done.stderr
    assert "no node can run this sweep" in done.stderr
    assert "has H100, not B200" in done.stderr and "has no accelerator, not B200" in done.stderr


def _runs_stay_on_a_shared_path(nodes: RayNodes, sweep, folder: Path) -> None:
    """With Ray's client and an accelerator asked for."""
    pytest.importorskip("grpc")
    address, shared, out = f"ray://127.0.0.1:{nodes.client_port}", folder / "shared", folder / "s"
    asked = ["--context", "8,16", "-o", str(out), "--accelerator", "H100", "--on", address]
    done = sweep(*asked, "--runs-at", str(shared))
    assert done.returncode == 0, done.stderr
    lines = journal(out)
    assert len(lines) == 2 and not list((out / "runs").iterdir())
    for line in lines:
        file = Path(line["run_file"])
        assert file.parent == shared and file.stem == line["point_id"]
        with RunFileReader(file) as reader:
            assert reader.run_data().info.state == "finished"


def _points_of_a_killed_node_run_elsewhere(nodes: RayNodes, sweep, folder: Path) -> None:
    """The node dies with all its processes while it has a point: none is lost, none there twice."""
    second = nodes.start(gpus=1, resources=H100)

    def kill() -> None:
        end = time.monotonic() + 240
        while len({line["node"] for line in journal(folder)}) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        nodes.kill(second)

    killer = threading.Thread(target=kill)
    killer.start()
    asked = ["--context", "8,16,24", "--batch", "1,2", "--rounds", "5", "-o", str(folder)]
    done = sweep(
        *asked, "--on", "ray", engine="fake:prefill_us=20000",
        RAY_ADDRESS=nodes.address, A_SECRET="hush",
    )  # fmt: skip
    killer.join()
    assert done.returncode == 0, done.stderr
    found = journal(folder)
    assert len(found) == len({line["point_id"] for line in found}) == 6
    assert {line["state"] for line in found} == {"done"}
    assert len({line["node"] for line in found}) == 2
    runs = list((folder / "runs").glob("*.sqlite"))
    assert len(runs) == 6
    # Neither code nor environment nor files of this process are sent to the nodes.
    assert not any(b"hush" in path.read_bytes() for path in runs)
