"""Baselines: runs that are kept under a name, one for each set of conditions.

``<data folder>/baselines/NAME/<first 12 digits of the conditions' SHA-256>.sqlite``: GPU or CPU,
driver, and of every engine its versions, model and device, and the workload. A run is compared with
the baseline of its own conditions; of others only where it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmprof.analysis.timing.conditions import gpu_index
from llmprof.analysis.view.opening import open_run
from llmprof.errors import LlmprofError, RunFileError, UsageError
from llmprof.newfiles import hidden_beside
from llmprof.plaintext import one_line
from llmprof.records import EngineRecord, RunData

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Conditions = dict[str, str]


@dataclass(frozen=True)
class Baseline:
    """One kept run."""

    name: str
    path: Path
    conditions: Conditions
    made_utc_ns: int


def conditions(data: RunData) -> Conditions:
    """What must be equal for a comparison to say something about the engines alone; in words."""
    environment, workload = data.info.environment, data.info.workload
    found: Conditions = {}
    gpus = {device.index: device for device in data.gpu_devices}
    for engine in data.engines:
        place = f"{engine.label}: "
        index = gpu_index(engine)
        gpu = gpus.get(index) if index is not None else None
        if gpu is not None:
            found[f"{place}GPU"] = gpu.name
        elif index is not None:
            found[f"{place}GPU"] = "not known"
        else:
            found[f"{place}CPU"] = _text(environment.get("cpu"))
        found |= {f"{place}{key}": value for key, value in _engine(engine).items()}
    if any(gpu_index(engine) is not None for engine in data.engines):
        found["driver"] = _text(environment.get("driver"))
    found["workload"] = str(workload.get("workload_sha256", "not known"))
    found["decode steps a round"] = str(workload.get("decode_len", "not known"))
    return found


def _engine(engine: EngineRecord) -> Conditions:
    if engine.info is None:
        return {"state": "did not load"}
    versions = ", ".join(f"{k} {v}" for k, v in sorted(engine.info.versions.items()))
    model = Path(engine.info.model).name
    return {
        "versions": versions,
        "model": f"{model} {engine.info.model_format}".strip(),
        "options": ", ".join(f"{k}={v}" for k, v in sorted(engine.options.items())),
    }


def _text(value: Any) -> str:
    """A value of the environment; of a CPU its model and count."""
    if isinstance(value, dict):
        if "reason" in value:
            return "not known"
        return json.dumps(value, sort_keys=True)
    return "not known" if value is None else str(value)


def differences(one: Conditions, two: Conditions) -> list[str]:
    """``GPU: A against B``, one for each condition that is not equal."""
    return [
        f"{one_line(key, 60)}: {one_line(one.get(key, 'none'), 100)} against"
        f" {one_line(two.get(key, 'none'), 100)}"
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key)
    ]


def save(name: str, run: Path) -> Baseline:
    """Keep a run; one of the same name and conditions is replaced.

    Raises:
        UsageError: no name for a file, or no run that llmprof drove to its end.
        LlmprofError: it cannot be kept.
    """
    data = open_run(run)
    if data.info.source != "driven" or data.info.state != "finished":
        raise UsageError(
            f"{one_line(str(run))}: a baseline is a finished run of llmprof with a timing pass;"
            f" this one is {data.info.state} and {data.info.source}"
        )
    found = conditions(data)
    target = _folder(name) / f"{_digest(found)}.sqlite"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with hidden_beside(target) as hidden:
            part = hidden / target.name
            shutil.copyfile(run, part)
            part.replace(target)
    except OSError as why:
        raise LlmprofError(f"cannot keep the baseline at {target}: {why.strerror}") from None
    return Baseline(name, target, found, data.info.t0_utc_ns)


def kept(name: str | None = None) -> list[Baseline]:
    """Those of that name, or all; by name, the newest first.

    Raises:
        UsageError: no name for a baseline.
    """
    folders = [_folder(name)] if name is not None else sorted(_root().glob("*"))
    found = []
    for folder in folders:
        for path in sorted(folder.glob("*.sqlite")):
            try:
                data = open_run(path)
            except RunFileError:
                continue  # damaged: as if it were not there; saving again mends it
            found.append(Baseline(folder.name, path, conditions(data), data.info.t0_utc_ns))
    return sorted(found, key=lambda b: (b.name, -b.made_utc_ns))


def baseline_for(name: str, data: RunData, across: bool) -> tuple[Baseline, list[str]]:
    """The one to compare a run with, and how its conditions differ.

    Raises:
        UsageError: there is none of that name, or, without ``across``, none of these conditions.
    """
    those = kept(name)
    if not those:
        raise UsageError(
            f"no baseline {name!r}: make one with llmprof baseline save {name} RUN.sqlite"
        )
    mine = conditions(data)
    best = min(those, key=lambda b: len(differences(b.conditions, mine)))
    differ = differences(best.conditions, mine)
    if differ and not across:
        raise UsageError(
            f"baseline {name!r} was made under other conditions (--across compares all the same): "
            + "; ".join(differ)
        )
    return best, differ


def _root() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("llmprof")) / "baselines"


def _folder(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"baseline {one_line(name, 60)!r}: a name has letters, digits, dots, - and _ only"
        )
    return _root() / name


def _digest(found: Conditions) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]
