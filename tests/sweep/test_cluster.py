"""A sweep on a Ray cluster of this host: two nodes, one of which is killed in the middle."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytest.importorskip("pyarrow")

SHORT = ["--rounds", "5", "--decode-len", "8", "--traced-steps", "0"]


def journal(folder: Path) -> list[dict]:
    file = folder / "points.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().splitlines(True) if line[-1:] == b"\n"]


def test_no_cluster_is_said_in_one_line(llmprof) -> None:
    done = llmprof(
        "sweep", "--engine", "fake", "--context", "8", "-o", "s", "--on", "ray",
        env={"RAY_ADDRESS": "127.0.0.1:1", "RAY_GCS_RPC_TIMEOUT_S": "1",
             "RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_py_gcs_connect_timeout_s": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no Ray cluster can be reached" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_points_of_a_killed_node_run_elsewhere(llmprof, tmp_path: Path, clean_env, monkeypatch):
    from ray.cluster_utils import Cluster

    # What a node's workers inherit is the node's environment, not that of the sweep.
    monkeypatch.setenv("PYTHONPATH", clean_env["PYTHONPATH"])
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A dead node is noticed after 3 × 1 s without an answer, not after half a minute.
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "1000")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        second = cluster.add_node(num_cpus=1)
        folder = tmp_path / "s"

        def kill() -> None:
            end = time.monotonic() + 120
            while len(journal(folder)) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            cluster.remove_node(second, allow_graceful=False)

        killer = threading.Thread(target=kill)
        killer.start()
        done = llmprof(
            "sweep", "--engine", "fake:prefill_us=20000", "--context", "8,16", "--batch",
            "1,2", *SHORT, "-o", "s", "--on", "ray",
            env={"RAY_ADDRESS": cluster.address, "A_SECRET": "hush"},
        )  # fmt: skip
        killer.join()
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    found = journal(folder)
    assert len(found) == len({line["point_id"] for line in found}) == 4
    assert {line["state"] for line in found} == {"done"}
    assert len({line["node"] for line in found}) == 2
    assert len(list((folder / "runs").glob("*.sqlite"))) == 4
    assert not any(b"hush" in path.read_bytes() for path in (folder / "runs").iterdir())
