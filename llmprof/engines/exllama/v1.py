"""ExLlama v1 (the package ``exllama``): GPTQ, no CUDA graphs, the legacy default stream."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from llmprof.engines.exllama.adapter import ExLlamaAdapter, Opening
from llmprof.engines.exllama.drives import Drive, ForwardDrive, Rows
from llmprof.engines.exllama.id_tokenizer import IdTokenizer, token_ids
from llmprof.engines.options import Options
from llmprof.errors import UsageError
from llmprof.models.exllama.shapes import v1_rope_covers
from llmprof.models.presets import LlamaConfig

_CHUNK = 2048
"""Prompt positions a forward pass: the package's own default."""


class ExLlamaEngine(ExLlamaAdapter):
    """Options beside those of all: ``attention=matmul|flash`` (flash needs flash-attn),
    ``fused=1|0`` (the fused attention kernel of single-row steps)."""

    name = "exllama"
    package = "exllama"
    tested = "0.1.0"
    extension = "exllama_ext"
    capability = (6, 0)

    def read_options(self, given: Options) -> None:
        self._flash = given.text("attention", "matmul", ("matmul", "flash")) == "flash"
        self._fused = given.flag("fused", True)

    def import_package(self, opening: Opening) -> None:
        try:
            self._module = import_module("exllama.model")
            self._generator_module = import_module("exllama.generator")
        except ImportError as why:
            raise self.missing(why) from None
        if self._flash and not hasattr(self._module, "flash_attn_func"):
            raise UsageError("exllama:attention=flash needs flash-attn: pip install flash-attn")

    def open(self, opening: Opening) -> Drive:
        files, config = opening.files, opening.files.config
        settings = self._module.ExLlamaConfig(str(files.folder / "config.json"))
        settings.model_path = str(files.files[0])
        settings.max_seq_len = opening.positions
        settings.max_input_len = min(_CHUNK, opening.positions) * opening.batch
        # The package keeps both fixed, whatever config.json says.
        settings.rotary_embedding_base = config.rope_theta
        if config.rope_scaling is not None:
            settings.compress_pos_emb = config.rope_scaling.factor
        settings.rope_no_half2 = not v1_rope_covers(config.head_dim, half2=True)
        settings.fused_attn = self._fuses(config)
        settings.use_flash_attn_2 = self._flash
        if opening.drive == "forward":
            settings.device_map.embed_tokens = "cuda:0"
        opening.progress("loading weights", None)
        torch = opening.torch
        with torch.no_grad():
            self._model = self._module.ExLlama(settings)
            self._cache = self._module.ExLlamaCache(
                self._model, batch_size=opening.batch, max_seq_len=opening.positions
            )
        torch.cuda.synchronize()
        if opening.drive == "generator":
            return _GeneratorDrive(
                torch, self._generator_module.ExLlamaGenerator, self._model, self._cache, files.raw
            )
        return ForwardDrive(
            torch,
            self._forward,
            self._rewind,
            torch.no_grad,
            config.vocab_size,
            opening.synchronous,
        )

    def free(self) -> None:
        self._model.free_unmanaged()
        del self._model, self._cache

    def cache_positions(self, opening: Opening) -> int:
        return opening.positions

    def workspace_bytes(self, opening: Opening) -> int:
        """``temp_state`` and ``temp_dq`` of model.py: one fp16 matrix dequantised whole."""
        config = opening.files.config
        rows = min(_CHUNK, opening.positions) * opening.batch
        largest = max(
            (t.n_bytes * 4 for n, t in opening.files.tensors.items() if n.endswith(".qweight")),
            default=0,
        )
        return 2 * rows * config.intermediate_size + largest

    def facts(self, opening: Opening) -> dict[str, Any]:
        config = opening.files.config
        notes = [
            "stream: legacy default",
            f"attention: {'flash-attn' if self._flash else 'torch matmul and softmax'}",
            "sums with atomics: greedy tokens may differ between runs",
        ]
        if self._fused and not self._fuses(config):
            notes.append(
                f"unfused attention: the fused kernel writes 4 KV heads at a time, the model has"
                f" {config.num_key_value_heads}"
            )
        if opening.drive == "generator":
            notes.append("the generator never emits BOS")
        return {"cuda_graph": False, "warmup_min_steps": 8, "notes": notes}

    def _fuses(self, config: LlamaConfig) -> bool:
        """``update_cache_kernel`` (q4_attn.cu) copies heads in fours, past the end if need be."""
        return self._fused and config.num_key_value_heads % 4 == 0

    def _forward(self, ids: Any, prompt: bool) -> Any:
        return self._model.forward(ids, self._cache, last_id_only=True)

    def _rewind(self) -> None:
        self._cache.current_seq_len = 0


class _GeneratorDrive:
    """The package's own ``ExLlamaGenerator``, greedy; it samples on the CPU."""

    def __init__(self, torch: Any, make: Any, model: Any, cache: Any, raw: Any) -> None:
        self._torch = torch
        vocab = model.config.vocab_size
        self._generator = make(model, IdTokenizer(vocab, token_ids(raw, vocab)), cache)
        settings = self._generator.settings
        settings.top_k, settings.top_p, settings.temperature = 1, 0.0, 1.0
        settings.token_repetition_penalty_max = 1.0

    def prefill(self, rows: Rows) -> list[int]:
        with self._torch.no_grad():
            self._generator.gen_begin(self._torch.tensor(rows, dtype=self._torch.long))
        return self.step()

    def step(self) -> list[int]:
        with self._torch.no_grad():
            row: list[int] = self._generator.gen_single_token().flatten().tolist()
        return row

    def finish(self) -> list[list[int]]:
        return []

    def reset(self) -> None:
        self._generator.gen_begin_empty()
