"""``llmprof sweep``: a grid of points; its report; its page in the TUI."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.cli.sweep_arguments import LISTS
from llmprof.errors import (
    EXIT_ENGINE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_RAN,
    EXIT_OK,
    UsageError,
)

if TYPE_CHECKING:
    from llmprof.sweep.forecast import Forecast, Place
    from llmprof.sweep.grid import Grid
    from llmprof.sweep.run import Executor
    from llmprof.sweep.store import Store


def sweep(arguments: argparse.Namespace) -> int:
    from llmprof.sweep import columns
    from llmprof.sweep.forecast import corrected, forecasts, here, shared
    from llmprof.sweep.store import Store

    grid = _grid(arguments)
    points = grid.points()
    if not points:
        raise UsageError("an empty grid: it has no points")
    place: Place | None = None if arguments.on.startswith("ray") else here()
    found = forecasts(points, place)
    if arguments.save_grid:
        _save(grid, Path(arguments.save_grid))
    if arguments.dry_run:
        took: dict[str, float] = {}
        if arguments.output and (Path(arguments.output) / "sweep.json").is_file():
            known = Store.open(Path(arguments.output))
            took = {k: e.seconds for k, e in known.ended.items() if e.state == "done"}
        shares = arguments.loads == "shared"
        planned = corrected(shared(found) if shares else found, took)
        print(dry_run(grid, planned, bool(took), shares))
        return EXIT_OK
    columns.check_pyarrow()
    if not arguments.output:
        raise UsageError("say where the sweep is kept: -o DIR (the same DIR goes on with it)")
    for line in impossible_lines(found):
        _say(line)
    executor = _executor(arguments, grid)
    try:
        store = Store.create(Path(arguments.output), grid)
        return _run(store, executor, found, arguments.retry == "failed")
    finally:
        executor.close()


def _run(store: Store, executor: Executor, found: list[Forecast], retry: bool) -> int:
    from llmprof.cli.run.run_command import ends_cleanly
    from llmprof.sweep.run import summary, sweep

    before = summary(store)
    if before.done + before.failed + before.impossible:
        _say(f"going on: {before.done} done, {before.failed} failed, {before.left} left")
    _say(f"{len(store.points)} points on {executor.words}; {store.folder}")
    stopper = _Stopper()
    with ends_cleanly(stopper):
        result = sweep(store, executor, found, tell=_say, stop=stopper.stopped, retry_failed=retry)
    text = f"{result.done} done"
    for count, word in ((result.failed, "failed"), (result.impossible, "impossible"),
                        (result.left, "left")):  # fmt: skip
        text += f", {count} {word}" if count else ""
    _say(f"{text}; {store.folder}/points.parquet")
    if result.interrupted and result.left:
        _say("stopped: the same command goes on with it")
        return EXIT_INTERRUPTED
    if result.failed:
        _say("failed points are run again with --retry failed")
    if not result.done:
        return EXIT_NOTHING_RAN
    return EXIT_ENGINE_FAILED if result.failed else EXIT_OK


class _Stopper:
    def __init__(self) -> None:
        self._event = threading.Event()

    def stop(self) -> None:
        self._event.set()

    def stopped(self) -> bool:
        return self._event.is_set()


def _executor(arguments: argparse.Namespace, grid: Grid) -> Executor:
    from llmprof.sweep.executors.local import LocalExecutor, gpu_slots

    where, shares = arguments.on, arguments.loads == "shared"
    for option, value in (
        ("--runs-at", arguments.runs_at),
        ("--accelerator", arguments.accelerator),
    ):
        if value and not where.startswith("ray"):
            raise UsageError(f"{option} goes with --on ray")
    if where == "local":
        return LocalExecutor(shares=shares)
    if where == "gpus":
        return LocalExecutor(*gpu_slots(), shares=shares)
    if where == "ray" or where.startswith("ray:"):
        from llmprof.sweep.executors.cluster import connect

        address = "auto" if where == "ray" else where.removeprefix("ray:")
        if address.startswith("//"):
            address = f"ray:{address}"
        nodes = arguments.accelerator or "", arguments.runs_at or ""
        return connect(address, grid, *nodes, shares=shares)
    raise UsageError(f"--on {where}: choose local, gpus, ray or ray://HOST:PORT")


def _grid(arguments: argparse.Namespace) -> Grid:
    from llmprof.sweep.fields import canonical
    from llmprof.sweep.grid import make, read_toml

    fields: dict[str, list[str]] = {}
    if arguments.model:
        fields["model"] = list(arguments.model)
    for option, name, _, _ in LISTS:
        given = getattr(arguments, option[2:].replace("-", "_"))
        if given:
            fields[name] = given
    for text in arguments.vary:
        name, equals, values = text.partition("=")
        if not equals:
            raise UsageError(f"--vary {text}: expected FIELD=VALUE,VALUE")
        known = canonical(name)
        if known in fields:
            raise UsageError(f"field {known} is given twice")
        fields[known] = [values]
    if arguments.grid is not None:
        if fields or arguments.engine or arguments.repeat:
            raise UsageError(f"{arguments.grid} is the whole grid: it takes no lists beside it")
        return read_toml(Path(arguments.grid))
    fields.setdefault("context", ["128"])
    return make(arguments.engine or [], fields, arguments.repeat or 1)


def _save(grid: Grid, path: Path) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(grid.to_toml())
    except OSError as why:
        raise UsageError(f"--save-grid {path}: {why.strerror}") from None


def impossible_lines(found: list[Forecast]) -> list[str]:
    """One line a reason, with the points that it is about."""
    reasons: dict[str, list[str]] = {}
    for item in found:
        if item.impossible:
            reasons.setdefault(item.impossible, []).append(item.point.words)
    return [
        f"impossible, not run: {points[0]}"
        + (f" and {len(points) - 1} more" if len(points) > 1 else "")
        + f": {why}"
        for why, points in reasons.items()
    ]


def dry_run(grid: Grid, found: list[Forecast], corrected: bool, shares: bool) -> str:
    """The plan as text."""
    from llmprof.sweep.loads import loads
    from llmprof.sweep.run import duration

    lines = impossible_lines(found)
    able = [item for item in found if not item.impossible]
    lines.append(f"{len(found)} points, {len(able)} possible; engines: {', '.join(grid.engines)}")
    lines.append(f"{'point':<14}{'memory':>12}{'time':>9}  what")
    shown = able if len(able) <= 60 else [*able[:40], *able[-10:]]
    for item in shown:
        if len(able) > 60 and item is able[-10]:
            lines.append(f"… {len(able) - 50} more")
        memory = "not known" if item.need_mib is None else f"{item.need_mib:,.0f} MiB"
        time = "?" if item.seconds is None else duration(item.seconds)
        lines.append(f"{item.point.point_id:<14}{memory:>12}{time:>9}  {item.point.words}")
    times = [item.seconds for item in able]
    known = [t for t in times if t is not None]
    if known:
        basis = "scaled by the points that have ended" if corrected else "a model on assumed rates"
        unknown = f", {len(times) - len(known)} points unknown" if len(known) < len(times) else ""
        lines.append(f"about {duration(sum(known))} in all one after another ({basis}{unknown})")
    count = len({load.key for load in loads([item.point for item in able]).values()})
    lines.append(
        f"{count} load{'s' * (count != 1)}, shared by points of the same engines, model, trace and"
        " seed; an engine that cannot change batch and context is loaded for every point"
        if shares
        else "every engine loads for each point (--loads fresh)"
    )
    return "\n".join(lines)


def report(arguments: argparse.Namespace) -> int:
    from llmprof.sweep.report.formats import write
    from llmprof.sweep.store import Store

    folder = Path(arguments.folder)
    store = Store.open(folder)
    out = Path(arguments.output) if arguments.output else folder / f"report.{arguments.to}"
    write(store, arguments.to, out, arguments.over or "")
    print(out)
    return EXIT_OK


def view(arguments: argparse.Namespace) -> int:
    """The page of a sweep, and the runs of its points."""
    from llmprof.sweep.store import Store

    store = Store.open(Path(arguments.folder), read=False)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("llmprof sweep view needs a terminal; llmprof sweep report does not")
    from llmprof.analysis.view.frames.live import RunDataSource
    from llmprof.analysis.view.opening import open_run
    from llmprof.config import load_config
    from llmprof.tui import run_app, run_sweep_app

    state: Any = None
    while True:
        path, state = run_sweep_app(store, state)
        if path is None:
            return EXIT_OK
        run_app(RunDataSource(open_run(path)), keymap=load_config().keys)


def _say(text: str) -> None:
    from llmprof.plaintext import one_line

    print(f"llmprof: {one_line(text)}", file=sys.stderr, flush=True)
