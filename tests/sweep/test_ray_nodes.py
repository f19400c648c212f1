"""Nodes of a Ray cluster that differ: accelerators, versions, a shared path, Ray's client."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNodes, free_port

import llmprof as package
from llmprof.runfile.reader import RunFileReader

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).parents[1] / "support" / "plugin"
ROOT = Path(package.__file__).parents[1]
ASKED = ["sweep", "--engine", "fake", "--rounds", "2", "--decode-len", "8", "--traced-steps", "0"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A node with a CPU, one with a GPU that Ray believes in, one with another llmprof."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        folder = Path(name)
        older = folder / "older"
        shutil.copytree(Path(package.__file__).parent, older / "llmprof")
        text = (older / "llmprof" / "__init__.py").read_text()
        assert package.__version__ in text
        (older / "llmprof" / "__init__.py").write_text(text.replace(package.__version__, "0.0.9"))
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": name, "PYTHONPATH": f"{ROOT}:{PLUGIN}",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with RayNodes(environment, folder / "ray") as found:
            found.start(resources={"plain": 1})
            found.start(gpus=1, resources={"accelerator_type:H100": 1})
            found.start(gpus=1, resources={"accelerator_type:A100": 1},
                        environment={"PYTHONPATH": f"{older}:{PLUGIN}"})  # fmt: skip
            yield found


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "points.jsonl").open()]


def test_points_go_to_gpus_and_other_nodes_are_skipped_with_a_reason(
    nodes: RayNodes, llmprof, tmp_path: Path
) -> None:
    done = llmprof(
        *ASKED, "--context", "8,16", "-o", "s", "--on", "ray",
        env={"RAY_ADDRESS": nodes.address}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 Ray nodes, 1 points at once" in done.stderr
    assert "has no GPU, while other nodes have" in done.stderr
    assert f"llmprof 0.0.9 there, {package.__version__} here" in done.stderr
    lines = journal(tmp_path / "s")
    assert {line["state"] for line in lines} == {"done"}
    assert all("(H100)" in line["node"] for line in lines)
    assert [row["load"] for line in lines for row in line["rows"]] == ["own", "shared"]


def test_an_accelerator_that_no_node_has(nodes: RayNodes, llmprof) -> None:
    done = llmprof(
        *ASKED, "--context", "8", "-o", "s", "--on", "ray", "--accelerator", "B200",
        env={"RAY_ADDRESS": nodes.address}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no node can run this sweep" in done.stderr
    assert "has H100, not B200" in done.stderr and "has no accelerator, not B200" in done.stderr


def test_rays_client_an_accelerator_and_runs_that_stay_on_a_shared_path(
    nodes: RayNodes, llmprof, tmp_path: Path
) -> None:
    pytest.importorskip("grpc")
    done = llmprof(
        *ASKED, "--context", "8,16", "-o", "s", "--accelerator", "H100", "--runs-at",
        str(tmp_path / "shared"), "--on", f"ray://127.0.0.1:{nodes.client_port}", timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = journal(tmp_path / "s")
    assert len(lines) == 2 and not list((tmp_path / "s" / "runs").iterdir())
    for line in lines:
        file = Path(line["run_file"])
        assert file.parent == tmp_path / "shared" and file.stem == line["point_id"]
        with RunFileReader(file) as reader:
            assert reader.run_data().info.state == "finished"


def test_an_address_where_no_client_server_answers(llmprof) -> None:
    pytest.importorskip("grpc")
    address = f"ray://127.0.0.1:{free_port()}"
    done = llmprof(*ASKED, "--context", "8", "-o", "s", "--on", address, timeout=240)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"llmprof: --on {address}: no Ray cluster can be reached")
    assert "Traceback" not in done.stderr
