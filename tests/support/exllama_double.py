"""Doubles of exllamav2 0.3.2 for tests without a GPU: the names, arguments and limits that the
adapter relies on, after model.py, cache.py, tensor_p.py and attn.py of the package.

Its "model" continues a sequence with (last id + positions seen) mod vocabulary.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
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
