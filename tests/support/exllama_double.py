"""Doubles of exllamav2 0.3.2 and exllamav3 1.6.5 for tests without a GPU: the names, arguments and
limits that the adapters rely on, after model.py, cache.py, tensor_p.py, attn.py and model_tp.py.

The "model" of v2 continues a sequence with (last id + positions seen) mod vocabulary.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import spawned_ranks
import torch

GIB = 1 << 30


class FakeCuda:
    """The part of ``torch.cuda`` that the adapters ask, over GPUs with so much free memory."""

    def __init__(self, free_gib: list[float]) -> None:
        self.free = [int(gib * GIB) for gib in free_gib]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: len(self.free),
            "get_device_capability": lambda _device=None: (9, 0),
            "mem_get_info": lambda device=0: (self.free[device], 80 * GIB),
            "synchronize": lambda _device=None: None,
            "empty_cache": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        # It would want a real GPU; without it no attention is foreseen.
        monkeypatch.delattr(torch, "_fused_sdp_choice", raising=False)


class Params:
    """attn_params.py."""

    def __init__(self, seq_len: int, past_len: int) -> None:
        self.seq_len, self.past_len = seq_len, past_len

    def get_block_diag_mask(self, device: Any) -> None:
        return None


class V2:
    """What was asked of the package, and its answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.masks: list[Any] = []
        double = self

        class Config:
            def __init__(self, folder: str) -> None:
                self.folder = folder

        class Model:
            tp = False

            def __init__(self, config: Any) -> None:
                self.config = config
                self.modules: list[Any] = []

            def set_device_map(self, allocation: Any, embed_cpu: bool = True) -> None:
                double.calls.append(("map", (allocation, embed_cpu)))

            def load(self, gpu_split: Any = None, callback: Any = None) -> None:
                double.calls.append(("load", gpu_split))
                self.set_device_map(gpu_split or [99999])
                self.split = gpu_split or [99999]
                if sum(self.split) < double.needs_gb:
                    raise AssertionError("Insufficient space in device allocation")

            def load_tp(self, gpu_split: Any, callback: Any, **expected: Any) -> None:
                double.calls.append(("load_tp", (gpu_split, expected)))
                self.tp = True

            def get_cache_devices(self) -> list[str]:
                rest, used = double.needs_gb, []
                for n, gb in enumerate(self.split):
                    if gb and rest > 0:
                        used.append(f"cuda:{n}")
                        rest -= gb
                return used

            def forward(self, ids: Any, cache: Any, last_id_only: bool = False, **more: Any) -> Any:
                double.calls.append(("forward", (tuple(ids.shape), str(ids.device), more)))
                if self.tp and last_id_only:
                    raise AttributeError("'list' object has no attribute 'narrow'")
                params = Params(ids.shape[1], cache.current_seq_len)
                double.masks.append(params.get_block_diag_mask("cpu"))
                cache.current_seq_len += ids.shape[1]
                if more.get("preprocess_only"):
                    return None
                logits = torch.zeros(ids.shape[0], 1, 512)
                for row in range(ids.shape[0]):
                    logits[row, 0, (int(ids[row, -1]) + cache.current_seq_len) % 512] = 1.0
                return logits

            def unload(self) -> None:
                double.calls.append(("unload", None))

        class Cache:
            def __init__(self, model: Any, batch_size: int = 1, max_seq_len: int = -1) -> None:
                double.calls.append(("cache", (batch_size, max_seq_len)))
                self.current_seq_len = 0

        class CacheTp(Cache):
            def __init__(self, model: Any, base: Any, **sizes: int) -> None:
                assert model.tp, "Cannot create TP cache unless model is loaded with load_tp()"
                double.calls.append(("cache_tp", base.__name__))
                super().__init__(model, **sizes)

        self.needs_gb = 12.0
        self.Model, self.Config, self.Cache, self.CacheTp = Model, Config, Cache, CacheTp

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = ModuleType("exllamav2")
        package.__path__ = []  # type: ignore[attr-defined]
        package.__spec__ = SimpleNamespace(name="exllamav2")  # type: ignore[assignment]
        attn = ModuleType("exllamav2.attn")
        for name, value in {
            "has_flash_attn": False,
            "has_flash_attn_with_paged": False,
            "has_xformers": False,
            "has_lower_right_sdpa": True,
            "ExLlamaV2Attention": SimpleNamespace(Params=Params),
        }.items():
            setattr(attn, name, value)
        for name, value in {
            "ExLlamaV2": self.Model,
            "ExLlamaV2Config": self.Config,
            "ExLlamaV2Cache": self.Cache,
            "ExLlamaV2Cache_Q4": type("ExLlamaV2Cache_Q4", (self.Cache,), {}),
            "ExLlamaV2Cache_TP": self.CacheTp,
        }.items():
            setattr(package, name, value)
        for name, module in {
            "exllamav2": package,
            "exllamav2.attn": attn,
            "exllamav2.generator": ModuleType("exllamav2.generator"),
            "exllamav2_ext": ModuleType("exllamav2_ext"),
        }.items():
            monkeypatch.setitem(sys.modules, name, module)

    def of(self, name: str) -> list[Any]:
        return [value for call, value in self.calls if call == name]


class V3:
    """Its tensor parallelism starts real processes, as the package does."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.needs_gb = 12.0
        double = self
        self.parallel = ModuleType("exllamav3.model.model_tp")
        self.parallel.Process = spawned_ranks.context.Process  # type: ignore[attr-defined]

        class Model:
            def __init__(self) -> None:
                self.modules: list[Any] = []
                self.processes: dict[int, Any] = {}

            @staticmethod
            def from_config(config: Any) -> Model:
                return Model()

            def load_gen(self, tensor_p: bool = False, tp_backend: str = "native") -> None:
                raise NotImplementedError

            def load(self, **how: Any) -> None:
                double.calls.append(("load", how))
                split = how.get("use_per_device") or [80.0]
                if how.get("tensor_p"):
                    devices = [*range(1, len(split)), -1]
                    self.processes = spawned_ranks.started(double.parallel, devices)
                    for _, pipe in self.processes.values():
                        pipe.recv()
                    return
                rest = double.needs_gb
                for n, gb in enumerate(split):
                    if gb and rest > 0:
                        device = SimpleNamespace(type="cuda", index=n)
                        self.modules.append(SimpleNamespace(device=device))
                        rest -= gb
                if rest > 0:
                    raise RuntimeError("Insufficient VRAM in split for model and cache")

            def warmup(self, cache: Any, **how: Any) -> list[str]:
                double.calls.append(("warmup", how))
                return []

            def tp_drain_acks(self) -> None:
                double.calls.append(("drain", None))

            def unload(self) -> None:
                for process, pipe in self.processes.values():
                    pipe.send("quit")
                    process.join(10)

        self.Model = Model

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = ModuleType("exllamav3")
        package.__path__ = []  # type: ignore[attr-defined]
        package.__spec__ = SimpleNamespace(name="exllamav3")  # type: ignore[assignment]
        table = SimpleNamespace(reset_page_table=lambda: None)
        sampler = ModuleType("exllamav3.generator.sampler")
        sampler.ArgmaxSampler = object  # type: ignore[attr-defined]
        for name, value in {
            "Model": self.Model,
            "Config": SimpleNamespace(from_directory=lambda folder: SimpleNamespace()),
            "Cache": lambda model, max_num_tokens: SimpleNamespace(),
            "Generator": lambda model, cache, tokenizer: SimpleNamespace(pagetable=table),
        }.items():
            setattr(package, name, value)
        for name, module in {
            "exllamav3": package,
            "exllamav3.generator": ModuleType("exllamav3.generator"),
            "exllamav3.generator.sampler": sampler,
            "exllamav3.model": ModuleType("exllamav3.model"),
            "exllamav3.model.model_tp": self.parallel,
            "exllamav3_ext": ModuleType("exllamav3_ext"),
        }.items():
            monkeypatch.setitem(sys.modules, name, module)

    def of(self, name: str) -> list[Any]:
        return [value for call, value in self.calls if call == name]
