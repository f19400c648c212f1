"""A Ray cluster of several nodes on this host, each a ``ray start`` of its own, to be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

START_S = 120.0
TRIES = 3
SLOW = "timed out during startup", "Deadline Exceeded"
"""Ray gives a node 30 s to come up, which a busy machine does not always make."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RayNodes:
    """Use it in a ``with``: what still runs at the end is killed, by process id.

    Args:
        environment: of the nodes: what their workers inherit.
        folder: Ray's own files; its sockets want a short path.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment = {**environment, "RAY_USAGE_STATS_ENABLED": "0"}
        self._folder = folder
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.port, self.client_port = free_port(), free_port()

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        for number in reversed(range(len(self._nodes))):
            self.kill(number)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(
        self,
        cpus: int = 1,
        gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """A node, the first one the head; its number. Returns when the node answers."""
        script = Path(sys.executable).with_name("ray")
        ray = [str(script)] if script.exists() else [sys.executable, "-m", "ray.scripts.scripts"]
        where = ["--address", self.address]
        if not self._nodes:
            where = [
                "--head", "--port", str(self.port), "--ray-client-server-port",
                str(self.client_port), "--include-dashboard=false", "--temp-dir", str(self._folder),
            ]  # fmt: skip
        command = [
            *ray, "start", *where, "--node-ip-address", "127.0.0.1", "--num-cpus", str(cpus),
            "--num-gpus", str(gpus), "--resources", json.dumps(resources or {}),
            "--object-store-memory", str(100 << 20), "--block", "--disable-usage-stats",
        ]  # fmt: skip
        for attempt in range(TRIES):
            said = self._started(command, environment or {})
            if not said:
                return len(self._nodes) - 1
            self.kill(len(self._nodes) - 1)
            self._nodes.pop()
            if not any(words in said for words in SLOW) or attempt == TRIES - 1:
                raise RuntimeError(said)
        raise AssertionError("no try was made")

    def _started(self, command: list[str], environment: Mapping[str, str]) -> str:
        """Start and wait; what it said where it did not come up, else nothing."""
        log = (self._folder.parent / f"{self._folder.name}-{len(self._nodes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                command,
                env={**self._environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._nodes.append(process)
        end = time.monotonic() + START_S
        while b"Ray runtime started" not in Path(log.name).read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                return Path(log.name).read_text(errors="replace")[-2000:] or "it said nothing"
            time.sleep(0.2)
        return ""

    def kill(self, number: int) -> None:
        """kill -9 of a node and of everything that it has started."""
        process = self._nodes[number]
        if process.poll() is not None:
            return
        for pid in [*_descendants(process.pid), process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended meanwhile
        process.wait()


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found
