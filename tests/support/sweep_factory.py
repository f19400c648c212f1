"""Rows of a sweep that never ran, with known curves, and a store that holds them."""

from __future__ import annotations

from pathlib import Path

from llmprof.sweep.grid import Grid, Point, make
from llmprof.sweep.store import Ended, Store

KV_BYTES = 524_288
WEIGHTS = 13_000_000_000
A_MS, NS_A_POSITION = 5.0, 250.0
"""The step of every made point: 5 ms and 250 ns a position and sequence."""


def grid(contexts: str = "128,1k,4k,8k", batches: str = "1,2,4", engines: int = 2) -> Grid:
    names = ["fake", "fake:step_us=500", "fake:step_us=900"][:engines]
    return make(names, {"context": contexts, "batch": batches})


def row(
    point: Point, engine: str, gpu: str = "H100", factor: float = 1.0, **changed: object
) -> dict:
    batch = int(point.fields.get("batch", "1"))
    positions = int(point.fields["context"]) + (64 + 1) / 2
    step = factor * (A_MS + NS_A_POSITION * positions * batch / 1e6)
    made = {
        "engine": engine, "engine_name": "fake", "state": "done", "reason": "",
        "options": {}, "versions": {"fake": "1"}, "reasons": {}, "warnings": [],
        "prompt_len": int(point.fields["context"]), "batch": batch, "decode_len": 64, "rounds": 8,
        "step_ms": step, "step_ms_low": step * 0.98, "step_ms_high": step * 1.02,
        "tok_s": batch * 1000 / step, "tok_s_low": batch * 980 / step,
        "tok_s_high": batch * 1020 / step,
        "ttft_ms": 3.0, "ttft_ms_low": 2.9, "ttft_ms_high": 3.1, "itl_p50_ms": step,
        "bytes_per_step": float(WEIGHTS + KV_BYTES * positions * batch),
        "modelled_gb_s": 1000.0, "measured_gb_s": None, "idle_ms": 0.5,
        "weight_bytes_per_step": float(WEIGHTS), "kv_bytes_per_token": float(KV_BYTES),
        "categories": {"GEMM/GEMV": A_MS - 1, "attention": step - A_MS, "norm": 0.5},
        "device": "cuda:0" if gpu else "cpu", "gpu": gpu, "gpu_uuid": f"GPU-{gpu}",
        "driver": "580.1", "node": "n1", "cpu": "AMD EPYC", "sm_clock_mhz": 1980.0,
    }  # fmt: skip
    return {**made, **changed}


def made_store(folder: Path, of: Grid | None = None, gpu_of: object = None) -> Store:
    """A store whose points have all ended."""
    store = Store.create(folder, of or grid())
    with store.writing():
        for number, point in enumerate(store.points):
            gpu = gpu_of(point) if callable(gpu_of) else "H100"
            rows = [row(point, f"e{i}", gpu, 1 + i / 2) for i, _ in enumerate(point.engines)]
            ended = Ended(point.point_id, "done", "", rows, 1.0, "n1", f"runs/{number}.sqlite")
            store.put(ended)
    return store
