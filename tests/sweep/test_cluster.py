"""A sweep on a Ray cluster that is not there."""

from __future__ import annotations

import pytest
from ray_nodes import free_port

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytest.importorskip("pyarrow")

ASKED = ["sweep", "--engine", "fake", "--context", "8", "-o", "s"]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_said_in_one_line(llmprof, scheme: str) -> None:
    """At once: Ray itself tries for up to 80 s."""
    address = f"{scheme}127.0.0.1:{free_port()}"
    asked = "ray" if not scheme else address
    done = llmprof(*ASKED, "--on", asked, env={"RAY_ADDRESS": address}, timeout=60)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"llmprof: --on {asked}: no Ray cluster can be reached (127.0.0.1:")
    assert "Connection refused" in last and "Traceback" not in done.stderr


def test_a_host_that_has_no_address(llmprof) -> None:
    done = llmprof(*ASKED, "--on", "ray://no.such.host.invalid:10001", timeout=60)
    assert done.returncode == 2 and "no.such.host.invalid:10001: " in done.stderr
    assert "is that its address?" in done.stderr.splitlines()[-1]
