"""Points on a Ray cluster: an actor a GPU, one point on it at a time."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from importlib import import_module
from typing import Any

from llmprof import __version__
from llmprof.config import load_config, parse_engine
from llmprof.distribution import how_to_install
from llmprof.errors import LlmprofError, MissingPackage, UsageError
from llmprof.plaintext import one_line
from llmprof.sweep.executors.node import CHUNK_BYTES, NodeWorker, code_digest, probe
from llmprof.sweep.grid import Grid, Point
from llmprof.sweep.loads import Todo, loads
from llmprof.sweep.store import Ended, Store

POLL_S = 0.1
LOOK_S = 2.0
"""How often the nodes of the cluster are looked at."""
CONNECT_S = 10.0
PROBE_S = 60.0
NO_NODE_S = 60.0
"""A cluster without a fit node may get one for this long."""
MOST_LOSSES = 3
"""A point whose worker died that often is not tried again: it may be what kills it."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Node:
    """A node that can run the sweep's points."""

    node_id: str
    name: str
    """Host and accelerator, for the user."""
    gpus: int
    """0: points run on its CPUs, one at a time."""
    cpus: int


@dataclass
class _Slot:
    node: Node
    actor: Any
    loaded: str = ""
    """Key of the load of its last point."""


@dataclass
class _Task:
    point: Point
    slot: _Slot


def _join(ray: Any, address: str) -> None:
    """Ray's client proxy starts a server for each client, on a port that may be taken by then, and
    has 30 s for it: once more where it was the server that failed. No runtime_env: neither code nor
    environment nor files of this machine are sent."""
    for last in (False, True):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionError as why:
            if last or "Initialization failure from server" not in str(why):
                raise


def connect(
    address: str, grid: Grid, accelerator: str, runs_at: str, shares: bool = True
) -> RayExecutor:
    """Join a cluster that runs.

    Args:
        shares: do points of one load share it?

    Raises:
        MissingPackage: Ray is not installed.
        UsageError: no cluster at ``address``, or none of its nodes can run the points.
    """
    try:
        import ray
    except ImportError:
        raise MissingPackage(f"--on ray needs ray: {how_to_install('ray')}") from None
    shown = "--on ray" if address == "auto" else f"--on {address}"
    hint = "start one with: ray start --head" if address == "auto" else "is that its address?"
    need = f"{shown} needs Ray's client: {how_to_install('ray')}"
    if address.startswith("ray://"):
        try:
            import_module("grpc")
        except ImportError:
            raise MissingPackage(need) from None
    if silent := _silent(address):
        raise UsageError(f"{shown}: no Ray cluster can be reached ({silent}); {hint}")
    try:
        _join(ray, address)
    except (ConnectionError, ImportError, OSError, RuntimeError, ValueError, TimeoutError) as why:
        if "ray[client]" in str(why):  # installed without gRPC
            raise MissingPackage(need) from None
        *_, reason = [line for line in str(why).splitlines() if line.strip()] or [""]
        text = one_line(reason if "Traceback" in str(why) else str(why), 160)
        raise UsageError(f"{shown}: no Ray cluster can be reached ({text}); {hint}") from None
    executor = RayExecutor(ray, grid, accelerator, runs_at, shares)
    try:
        executor.look()
        if not executor.nodes:
            skipped = "; ".join(executor.skipped.values()) or "it has no nodes"
            raise UsageError(f"{shown}: no node can run this sweep: {one_line(skipped, 300)}")
    except BaseException:
        executor.close()
        raise
    return executor


class RayExecutor:
    """Runs points on the nodes of a cluster.

    Attributes:
        nodes: those that can run the points, by Ray's id.
        skipped: the others, and why.
    """

    def __init__(self, ray: Any, grid: Grid, accelerator: str, runs_at: str, shares: bool) -> None:
        self._ray = ray
        self._shares = shares
        self._accelerator = accelerator
        self._runs_at = runs_at
        config = load_config()
        specs = [parse_engine(text, config) for text in grid.engines]
        given = [text.partition(":")[0].partition("@")[2] for text in grid.engines]
        self._engines = list(zip([spec.name for spec in specs], given, strict=True))
        self._cpu_only = all(s.options.get("device", "").startswith("cpu") for s in specs)
        self.nodes: dict[str, Node] = {}
        self.skipped: dict[str, str] = {}
        self._slots: list[_Slot] = []
        self._told: set[str] = set()
        self._niced: set[str] = set()

    @property
    def words(self) -> str:
        count = sum(max(1, node.gpus) for node in self.nodes.values())
        return f"{len(self.nodes)} Ray nodes, {count} points at once"

    def close(self) -> None:
        for slot in self._slots:
            self._kill(slot)
        self._slots.clear()
        self._ray.shutdown()

    # -- nodes ------------------------------------------------------------------------------

    def look(self) -> None:
        """Take new nodes in, ask them what they have, and let dead ones go."""
        alive = {n["NodeID"]: n for n in self._ray.nodes() if n["Alive"]}
        for gone in [node_id for node_id in self.nodes if node_id not in alive]:
            del self.nodes[gone]
            for slot in [s for s in self._slots if s.node.node_id == gone]:
                self._slots.remove(slot)
        self.skipped = {k: v for k, v in self.skipped.items() if k in alive}
        fresh = {k: n for k, n in alive.items() if k not in self.nodes and k not in self.skipped}
        if not fresh:
            return
        with_gpu = any(n["Resources"].get("GPU", 0) >= 1 for n in alive.values())
        asked = {}
        for node_id, node in fresh.items():
            why = self._unfit(node, with_gpu)
            if why:
                self.skipped[node_id] = f"{_host(node)}: {why}"
            else:
                options = {"num_cpus": 0, "scheduling_strategy": self._on(node_id)}
                remote = self._ray.remote(probe).options(**options, max_retries=0)
                asked[node_id] = remote.remote(self._engines)
        for node_id, reference in asked.items():
            self._take(node_id, fresh[node_id], reference)

    def _unfit(self, node: dict[str, Any], with_gpu: bool) -> str:
        resources = node["Resources"]
        if self._accelerator and f"accelerator_type:{self._accelerator}" not in resources:
            there = [k.partition(":")[2] for k in resources if k.startswith("accelerator_type:")]
            return f"has {', '.join(there) or 'no accelerator'}, not {self._accelerator}"
        if with_gpu and not self._cpu_only and resources.get("GPU", 0) < 1:
            return "has no GPU, while other nodes have"
        if resources.get("GPU", 0) < 1 and resources.get("CPU", 0) < 1:
            return "offers neither a GPU nor a CPU"
        return ""

    def _take(self, node_id: str, node: dict[str, Any], reference: Any) -> None:
        host = _host(node)
        try:
            facts = self._ray.get(reference, timeout=PROBE_S)
        except self._ray.exceptions.GetTimeoutError:
            self.skipped[node_id] = f"{host}: did not answer within {PROBE_S:.0f} s"
            return
        except self._ray.exceptions.RayError as why:
            lines = [line for line in str(why).splitlines() if line.strip()]
            last = one_line(lines[-1], 120) if lines else type(why).__name__
            self.skipped[node_id] = f"{host}: llmprof does not answer there ({last})"
            return
        unfit = "; ".join(f"engine {k}: {v}" for k, v in facts["lacking"].items())
        if facts["version"] != __version__:
            unfit = f"llmprof {one_line(str(facts['version']), 30)} there, {__version__} here"
        elif facts["digest"] != code_digest():
            unfit = f"llmprof {__version__} as here, but of other sources"
        if unfit:
            self.skipped[node_id] = f"{host}: {unfit}"
            return
        resources = node["Resources"]
        kinds = [k.partition(":")[2] for k in resources if k.startswith("accelerator_type:")]
        label = f"{facts['host']}/{node_id[:6]}" + (f" ({', '.join(kinds)})" if kinds else "")
        gpus = 0 if self._cpu_only else int(resources.get("GPU", 0))
        self.nodes[node_id] = Node(node_id, label, gpus, int(resources.get("CPU", 0)))

    def _on(self, node_id: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)

    def _add_slots(self) -> None:
        """An actor for each GPU, or for the CPUs of a node without one."""
        for node in self.nodes.values():
            there = sum(slot.node.node_id == node.node_id for slot in self._slots)
            for _ in range(max(1, node.gpus) - there):
                options: dict[str, Any] = {
                    "num_gpus": 1 if node.gpus else 0,
                    # All CPUs of a node without a GPU: nothing else of Ray's runs beside a point.
                    "num_cpus": 0 if node.gpus else max(1, node.cpus),
                    "scheduling_strategy": self._on(node.node_id),
                    "max_restarts": 0,
                    "max_task_retries": 0,
                }
                if self._accelerator:
                    options["accelerator_type"] = self._accelerator
                actor = self._ray.remote(NodeWorker).options(**options).remote(self._shares)
                self._slots.append(_Slot(node, actor))

    def _kill(self, slot: _Slot) -> None:
        try:
            self._ray.kill(slot.actor)
        except (self._ray.exceptions.RayError, ValueError):
            pass  # it is dead, or its node is

    def _tell_skipped(self, tell: Tell) -> None:
        for node_id, why in self.skipped.items():
            if node_id not in self._told:
                self._told.add(node_id)
                tell(f"node skipped: {why}")

    # -- points -----------------------------------------------------------------------------

    def run(
        self, points: Sequence[Point], store: Store, tell: Tell, stop: Callable[[], bool]
    ) -> Iterator[Ended]:
        """Outcomes as they come; points of a lost worker are run again elsewhere."""
        todo = Todo(points, loads(store.points))
        losses: dict[str, int] = {}
        running: dict[Any, _Task] = {}
        looked = with_node = time.monotonic()
        while (todo or running) and not stop():
            if time.monotonic() - looked > LOOK_S:
                self.look()
                looked = time.monotonic()
            self._tell_skipped(tell)
            self._add_slots()
            if self._slots:
                with_node = time.monotonic()
            elif time.monotonic() - with_node > NO_NODE_S:
                raise LlmprofError(
                    f"no node of the cluster can run points any more; {len(todo)} are left: the"
                    " same command goes on with them"
                )
            busy = [task.slot for task in running.values()]
            for slot in [s for s in self._slots if all(s is not b for b in busy)]:
                point = todo.take(slot.loaded)
                if point is not None:
                    load = todo.load(point)
                    slot.loaded = load.key
                    call = slot.actor.run.remote(
                        point.point_id, point.arguments(), astuple(load), self._runs_at
                    )
                    running[call] = _Task(point, slot)
            if not running:
                time.sleep(POLL_S)
                continue
            ready, _ = self._ray.wait(list(running), num_returns=1, timeout=POLL_S)
            for call in ready:
                task = running.pop(call)
                ended = self._collect(call, task, store, tell, losses)
                if ended is None:
                    todo.put_back(task.point)
                else:
                    yield ended

    def _collect(
        self, call: Any, task: _Task, store: Store, tell: Tell, losses: dict[str, int]
    ) -> Ended | None:
        """The outcome, with the run file at home; ``None``: the worker was lost on the way."""
        point, node = task.point, task.slot.node
        errors = self._ray.exceptions
        try:
            facts = self._ray.get(call)
            run_file = facts["run_file"]
            if facts["size"]:
                run_file = self._fetch(task, store, int(facts["size"]))
        except errors.RayTaskError as why:
            return Ended(point.point_id, "failed", one_line(str(why.cause), 300), node=node.name)
        except errors.RayError as why:
            if any(slot is task.slot for slot in self._slots):
                self._slots.remove(task.slot)
                self._kill(task.slot)
            # Asked again before it gets another point: it may be dead without Ray knowing yet.
            self.nodes.pop(node.node_id, None)
            count = losses[point.point_id] = losses.get(point.point_id, 0) + 1
            lost = type(why).__name__
            if count >= MOST_LOSSES:
                reason = f"its worker was lost {count} times ({lost}, last on {node.name})"
                return Ended(point.point_id, "failed", reason, node=node.name)
            tell(f"{node.name} was lost ({lost}): {point.words} is run again")
            return None
        if facts["nice"] and node.node_id not in self._niced:
            self._niced.add(node.node_id)
            tell(
                f"{node.name}: points run at nice +{facts['nice']} and wait for whatever else runs"
                " there; start that node's Ray with RAY_worker_niceness=0"
            )
        state: Any = "failed" if facts["reason"] else "done"
        rows, seconds = facts["rows"], facts["seconds"]
        return Ended(point.point_id, state, facts["reason"], rows, seconds, node.name, run_file)

    def _fetch(self, task: _Task, store: Store, size: int) -> str:
        """The run file through the object store, piece by piece."""
        with store.work(task.point) as work:
            part = work / "run.sqlite"
            with part.open("wb") as file:
                for offset in range(0, size, CHUNK_BYTES):
                    file.write(self._ray.get(task.slot.actor.chunk.remote(offset)))
            task.slot.actor.forget.remote()
            return store.keep_run(task.point, part)


def _silent(address: str) -> str:
    """Why nothing answers at the cluster's host and port, empty where something does: Ray itself
    tries for up to 80 s before it says so. An address of another kind is left to Ray."""
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = target.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, UnicodeError) as why:
        reason = getattr(why, "strerror", None) or str(why) or type(why).__name__
        return one_line(f"{host}:{port}: {reason}", 120)
    return ""


def _host(node: dict[str, Any]) -> str:
    return one_line(str(node.get("NodeManagerHostname") or node["NodeID"][:6]), 60)
