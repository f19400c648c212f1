"""From the JSON document of a run to rows of ``points.parquet``: one a point and engine.

Numbers keep the units of the document and carry them in their names; what could not be had is
``None``, with its reason in ``reasons`` under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]

NUMBERS = (
    "tok_s", "tok_s_low", "tok_s_high", "ttft_ms", "ttft_ms_low", "ttft_ms_high",
    "step_ms", "step_ms_low", "step_ms_high", "itl_p50_ms", "itl_p90_ms", "itl_p99_ms",
    "prefill_tok_s", "j_per_token", "slowdown", "busy_ms", "idle_ms", "traced_step_ms",
    "kernels_per_step", "launches_per_step", "bytes_per_step", "modelled_gb_s", "measured_gb_s",
    "peak_gb_s", "copy_gb_s", "load_s", "weight_bytes_per_step", "kv_bytes_per_token",
    "sm_clock_mhz", "mem_clock_mhz", "temperature_c", "power_w",
)  # fmt: skip
"""Columns of 64-bit floats. ``step_ms`` is batch × 1000 / ``tok_s``, with its interval;
``busy_ms``, ``idle_ms``, ``traced_step_ms`` and categories are of the traced pass, a step."""
COUNTS = ("repeat", "rounds", "prompt_len", "batch", "decode_len")
TEXTS = (
    "point", "state", "reason", "engine", "engine_name", "model", "model_format", "device", "gpu",
    "gpu_uuid", "driver", "cuda", "node", "cpu", "schedule", "prompt_sha256", "throttle",
    "idle_at_most", "load", "load_note", "llmprof_version", "llmprof_commit", "utc", "run_file",
)  # fmt: skip
MAPS = ("fields", "options", "versions", "reasons")
"""Text → text."""


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The engines of one run, without what the store adds (point, fields, repeat, run file)."""
    return [_row(engine, document) for engine in document["engines"]]


def _row(engine: Mapping[str, Any], document: Mapping[str, Any]) -> Row:
    reasons: dict[str, str] = {}
    workload, environment = document["workload"], document["environment"]
    failure = engine["failure"] or {}
    row: Row = {
        "engine": engine["label"],
        "engine_name": engine["name"],
        "options": {k: v for k, v in engine["options"].items() if k != "label"},
        "state": "done" if engine["state"] == "finished" else str(engine["state"]),
        "reason": failure.get("message", ""),
        "prompt_len": workload["prompt_len"],
        "batch": workload["batch"],
        "decode_len": workload["decode_len"],
        "rounds": len(engine["rounds"]),
        "schedule": document["run"]["schedule"],
        "prompt_sha256": workload["prompt_sha256"],
        "utc": document["run"]["t0_utc"],
        "llmprof_version": document["tool"]["version"],
        "llmprof_commit": document["tool"].get("commit") or "",
        "node": _known(environment.get("hostname")),
        "cpu": _known((environment.get("cpu") or {}).get("model")),
        "warnings": [w["text"] for w in document["warnings"]
                     if w["scope"] in ("run", engine["label"])],
    }  # fmt: skip
    put = _Putter(row, reasons)
    batch = workload["batch"]
    for key in ("tok_s", "ttft_ms"):
        put.estimate(key, engine)
    _step(row, reasons, batch)
    itl = engine["itl_ms"]
    for name in ("p50", "p90", "p99"):
        put.value(f"itl_{name}_ms", (itl or {}).get(name), engine.get("itl_ms_reason"))
    prefill = engine["prefill_tok_s"] or {}
    put.value("prefill_tok_s", prefill.get("median"), engine.get("prefill_tok_s_reason"))
    put.take("j_per_token", engine)
    put.take("load_s", engine)
    row["load"] = "shared" if engine["load"]["shared"] else "own"
    row["load_note"] = engine["load"]["note"]
    for key in ("bytes_per_step", "modelled_gb_s", "measured_gb_s", "peak_gb_s", "copy_gb_s"):
        put.take(key, engine["bandwidth"])
    _trace(row, put, engine["tracing"])
    info = engine["info"] or {}
    for key in ("weight_bytes_per_step", "kv_bytes_per_token"):
        put.value(key, info.get(key), "the engine does not know it")
    for key in ("model", "model_format", "device"):
        row[key] = str(info.get(key, ""))
    row["versions"] = dict(info.get("versions", {}))
    _conditions(row, put, engine, document)
    row["reasons"] = reasons
    return row


class _Putter:
    """Fills a row; what is missing leaves its reason."""

    def __init__(self, row: Row, reasons: dict[str, str]) -> None:
        self._row = row
        self.reasons = reasons

    def value(self, name: str, value: Any, reason: str | None) -> None:
        self._row[name] = None if value is None else float(value)
        if value is None:
            self.reasons[name] = reason or "the run does not say"

    def take(self, key: str, source: Mapping[str, Any], name: str = "") -> None:
        self.value(name or key, source.get(key), source.get(f"{key}_reason"))

    def estimate(self, key: str, source: Mapping[str, Any]) -> None:
        found = source[key]
        if found is None:
            for name in (key, f"{key}_low", f"{key}_high"):
                self.value(name, None, source.get(f"{key}_reason"))
            return
        value = next((found[k] for k in ("median", "mean", "trimmed") if k in found), None)
        self.value(key, value, None)
        for end in ("low", "high"):
            self.value(f"{key}_{end}", found[end], found.get(f"{end}_reason"))


def _step(row: Row, reasons: dict[str, str], batch: int) -> None:
    """Mean time of a step from the rate, so that both stand for the same whole rounds."""
    for name, source in (("step_ms", "tok_s"), ("step_ms_low", "tok_s_high"),
                         ("step_ms_high", "tok_s_low")):  # fmt: skip
        rate = row[source]
        row[name] = batch * 1000 / rate if rate else None
        if not rate:
            reasons[name] = reasons.get(source, "no rate")


def _trace(row: Row, put: _Putter, tracing: Mapping[str, Any]) -> None:
    put.take("slowdown", tracing)
    median_ns = tracing.get("median_step_ns")
    put.value("traced_step_ms", None if median_ns is None else median_ns / 1e6,
              tracing.get("median_step_ns_reason"))  # fmt: skip
    gpu = tracing["gpu"]
    why = tracing.get("gpu_reason")
    for name, key in (("busy_ms", "busy_ms_per_step"), ("idle_ms", "idle_ms_per_step"),
                      ("kernels_per_step",) * 2, ("launches_per_step",) * 2):  # fmt: skip
        put.value(name, (gpu or {}).get(key), (gpu or {}).get(f"{key}_reason") or why)
    row["idle_at_most"] = (gpu or {}).get("idle_at_most") or ""
    found = {
        c["category"]: c["ms_per_step"]
        for c in (gpu or {}).get("categories", ())
        if c["ms_per_step"] is not None
    }
    row["categories"] = found
    if not found:
        put.reasons["categories"] = why or "no kernel of a decode step was traced"


def _conditions(
    row: Row, put: _Putter, engine: Mapping[str, Any], document: Mapping[str, Any]
) -> None:
    found = engine["conditions"] or {}
    for key in ("sm_clock_mhz", "mem_clock_mhz", "temperature_c", "power_w"):
        span = found.get(key)
        why = found.get(f"{key}_reason") or engine.get("conditions_reason")
        put.value(key, (span or {}).get("median"), why)
    row["throttle"] = ", ".join(
        f"{t['reason']} {t['share']:.0%}" for t in found.get("throttle", ())
    )
    device = row["device"]
    number = device.removeprefix("cuda:").partition(",")[0]
    gpu: Mapping[str, Any] = {}
    if device.startswith("cuda"):
        wanted = int(number) if number.isdecimal() else 0
        gpu = next((g for g in document["gpus"] if g["index"] == wanted), {})
    row["gpu"] = str(gpu.get("name") or "")
    row["gpu_uuid"] = str(gpu.get("uuid") or "")
    driver = document["environment"].get("driver") or {}
    row["driver"] = _known(driver.get("driver"))
    row["cuda"] = _known(driver.get("cuda"))


def _known(value: Any) -> str:
    """Of the environment block, where ``{"value": null, "reason": …}`` is what is not known."""
    return value if isinstance(value, str) else ""


def hardware(row: Mapping[str, Any]) -> str:
    """What a row ran on: rows of different hardware are never one curve."""
    device = str(row.get("device") or "")
    if device.startswith(("cuda", "gpu")) or row.get("gpu"):
        return str(row.get("gpu") or "GPU that NVML does not know")
    return str(row.get("cpu") or "CPU")


def is_row(row: Any) -> bool:
    """Of the types that ``table_of`` takes: what a journal says may be anybody's. Halves of
    characters are not looked for (``is_text``)."""
    if not isinstance(row, dict):
        return False
    # One look-up a value: a sweep of ten thousand points has a million of them.
    checks = _CHECKS
    return all(
        value is None or (check := checks.get(name)) is None or check(value)
        for name, value in row.items()
    )


def is_number(value: Any) -> bool:
    """One that a double holds; a NaN is none."""
    return (type(value) is float and abs(value) < 1e300) or (
        type(value) is int and abs(value) <= 1 << 53
    )


def is_text(value: Any) -> bool:
    """No half of a surrogate pair anywhere in it: no file and no terminal takes one."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _is_map(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(fits(v) for v in value.values())


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(TEXTS, lambda value: type(value) is str),
    **dict.fromkeys(COUNTS, lambda value: type(value) is int and abs(value) < 1 << 62),
    **dict.fromkeys(NUMBERS, is_number),
    **dict.fromkeys(MAPS, lambda value: _is_map(value, lambda v: type(v) is str)),
    "categories": lambda value: _is_map(value, is_number),
    "warnings": _is_list_of_texts,
}
