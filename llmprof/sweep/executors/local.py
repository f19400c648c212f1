"""Points on this host: one after another, or one worker a GPU."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from llmprof.errors import LlmprofError, UsageError
from llmprof.newfiles import alone
from llmprof.plaintext import one_line
from llmprof.records import Unavailable
from llmprof.sweep.executors.point import PointProcess
from llmprof.sweep.grid import Point
from llmprof.sweep.loads import Load, Todo, loads
from llmprof.sweep.rows import rows_of
from llmprof.sweep.store import Ended, Store

Tell = Callable[[str], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Slot:
    """Where one point at a time runs."""

    name: str
    variables: Mapping[str, str | None] = field(default_factory=dict)


HOST = Slot("this host")


class LocalExecutor:
    """Runs points on ``slots``, at most one on each.

    Args:
        held: locks of the GPUs.
        shares: do points of one load share it?
    """

    def __init__(
        self,
        slots: Sequence[Slot] = (HOST,),
        held: ExitStack | None = None,
        shares: bool = True,
    ) -> None:
        self.slots = slots
        self._shares = shares
        self._held = held or ExitStack()

    @property
    def words(self) -> str:
        return ", ".join(slot.name for slot in self.slots)

    def close(self) -> None:
        self._held.close()

    def run(self, points: Sequence[Point], store: Store, tell: Tell, stop: Stop) -> Iterator[Ended]:
        """Outcomes as they come; a point that was stopped has none."""
        todo = Todo(points, loads(store.points))
        done: queue.SimpleQueue[Ended | BaseException | None] = queue.SimpleQueue()
        leave = threading.Event()

        def work(slot: Slot) -> None:
            def stopped() -> bool:
                return stop() or leave.is_set()

            process = PointProcess(self._shares, slot.variables, store.folder / "work")
            try:
                while not stopped():
                    point = todo.take(process.loaded)
                    if point is None:
                        break
                    ended = _run_here(point, todo.load(point), store, slot, process, stopped)
                    if ended is not None:
                        done.put(ended)
            except BaseException as why:  # noqa: BLE001 - raised again by the one who waits
                done.put(why)
            finally:
                process.close()
                done.put(None)

        threads = [threading.Thread(target=work, args=(s,), name=s.name) for s in self.slots]
        for thread in threads:
            thread.start()
        running = len(threads)
        try:
            while running:
                ended = done.get()
                if ended is None:
                    running -= 1
                elif isinstance(ended, BaseException):
                    raise ended
                else:
                    yield ended
        finally:
            leave.set()
            for thread in threads:
                thread.join()


def _run_here(
    point: Point, load: Load, store: Store, slot: Slot, process: PointProcess, stop: Stop
) -> Ended | None:
    """One point in the store's working folder; ``None``: it was stopped."""
    with store.work(point) as work:
        file = work / "run.sqlite"
        ran = process.run(point.arguments(), load, file, stop)
        if ran.stopped:
            return None
        rows = [] if ran.document is None else rows_of(ran.document)
        # A run in which nothing loaded is not kept by llmprof itself.
        kept = store.keep_run(point, file) if rows else ""
    node = next((str(row["node"]) for row in rows), "")
    where = "" if slot is HOST else slot.name
    return Ended(
        point.point_id,
        "failed" if ran.reason else "done",
        ran.reason,
        rows,
        round(ran.seconds, 3),
        f"{node} {where}".strip(),
        kept,
    )


def gpu_slots() -> tuple[list[Slot], ExitStack]:
    """A slot for each GPU of this host, locked for this process.

    Raises:
        LlmprofError: no GPU, or one that another process computes on.
    """
    from llmprof.tracers.nvml.fields import describe_device, open_nvml, visible_handles

    nvml = open_nvml()
    if isinstance(nvml, Unavailable):
        raise UsageError(f"--on gpus: {nvml.reason}")
    held = ExitStack()
    slots = []
    try:
        handles, _ = visible_handles(nvml)
        for index, handle in enumerate(handles):
            device, _ = describe_device(nvml, handle, index)
            users = _users(nvml, handle)
            if users:
                raise LlmprofError(
                    f"--on gpus: GPU {index} ({one_line(device.name, 60)}) is used by process"
                    f" {', '.join(map(str, users[:3]))}; a GPU is never shared: end it, or leave"
                    " the GPU out with CUDA_VISIBLE_DEVICES"
                )
            _lock(held, device.uuid or f"index-{index}", index)
            name = f"GPU {index}"
            slots.append(Slot(name, {"CUDA_VISIBLE_DEVICES": device.uuid or str(index)}))
    except BaseException:
        held.close()
        raise
    finally:
        nvml.nvmlShutdown()
    if not slots:
        held.close()
        raise UsageError("--on gpus: no GPU is visible here (CUDA_VISIBLE_DEVICES)")
    return slots, held


def _lock(held: ExitStack, uuid: str, index: int) -> None:
    """Sweeps of one host agree on who has which GPU by a file of its UUID."""
    path = Path(tempfile.gettempdir()) / f"llmprof-{one_line(uuid, 60)}.lock"
    try:
        held.enter_context(alone(path))
    except BlockingIOError:
        raise LlmprofError(
            f"--on gpus: GPU {index} is taken by another sweep; leave it out with"
            " CUDA_VISIBLE_DEVICES"
        ) from None
    except PermissionError:
        raise LlmprofError(
            f"--on gpus: {path} is another user's; remove it if no sweep of theirs runs"
        ) from None


def _users(nvml: object, handle: object) -> list[int]:
    """Processes that compute on a GPU now, as far as NVML says."""
    try:
        found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)  # type: ignore[attr-defined]
    except (nvml.NVMLError, AttributeError):  # type: ignore[attr-defined]
        return []  # a container or a driver that does not tell
    return [int(p.pid) for p in found if int(p.pid) != os.getpid()]
