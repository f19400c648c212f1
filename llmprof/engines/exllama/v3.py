"""ExLlamaV3: EXL3 or fp16, its own CUDA graphs, Triton attention over a paged cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, util
from types import ModuleType
from typing import Any

from llmprof.engines.exllama.adapter import CACHE_BITS, PAGE, ExLlamaAdapter, Opening
from llmprof.engines.exllama.drives import Drive, ForwardDrive, JobsDrive
from llmprof.engines.exllama.heartbeat import heartbeat
from llmprof.engines.exllama.id_tokenizer import IdTokenizer, token_ids
from llmprof.engines.options import Options

_CHUNK = 2048
"""Prompt positions a forward pass: the generator's own default."""
_CACHES = ("fp16", "q8", "q7", "q6", "q5", "q4", "q3", "q2")


class ExLlamaV3Engine(ExLlamaAdapter):
    """Options beside those of all: ``graphs=1|0``, ``cache=fp16|q8|…|q2``."""

    name = "exllamav3"
    package = "exllamav3"
    tested = "1.6.5"
    extension = "exllamav3_ext"
    capability = (7, 5)

    def read_options(self, given: Options) -> None:
        self._graphs = given.flag("graphs", True)
        self._cache_type = given.text("cache", "fp16", _CACHES)
        self.cache_bits = CACHE_BITS[self._cache_type]

    def import_package(self, opening: Opening) -> None:
        # graph.cu reads it once, at the first capture.
        os.environ["EXL3_GRAPHS"] = "1" if self._graphs else "0"
        try:
            with _pydantic_error():
                self._module = import_module("exllamav3")
                samplers = import_module("exllamav3.generator.sampler")
        except ImportError as why:
            raise self.missing(why) from None
        self._sampler = samplers.ArgmaxSampler

    def open(self, opening: Opening) -> Drive:
        module, torch = self._module, opening.torch
        settings = module.Config.from_directory(str(opening.files.folder))
        self._model = module.Model.from_config(settings)
        layers: dict[str, Any] = {}
        if self._cache_type != "fp16":
            bits = int(self._cache_type[1:])
            layers = {"layer_type": module.CacheLayer_quant, "k_bits": bits, "v_bits": bits}
        self._cache = module.Cache(
            self._model, max_num_tokens=opening.paged_positions * opening.batch, **layers
        )
        with heartbeat(opening.progress, "loading weights"):
            self._model.load(device=torch.device("cuda", 0))
        torch.cuda.synchronize()
        if opening.drive == "generator":
            return self._jobs(opening, settings)
        self._prepare_forward(opening)
        return ForwardDrive(
            torch,
            self._forward,
            self._rewind,
            torch.inference_mode,
            opening.files.config.vocab_size,
            opening.synchronous,
        )

    def free(self) -> None:
        self._model.unload()
        del self._model, self._cache

    def workspace_bytes(self, opening: Opening) -> int:
        """Prefill dequantises one projection whole (modules/quant/exl3.py)."""
        if opening.files.format == "fp16":
            return 0
        config = opening.files.config
        return 2 * config.hidden_size * config.intermediate_size

    def facts(self, opening: Opening) -> dict[str, Any]:
        quantised = opening.files.format == "exl3"
        notes = [
            "stream: torch's current one",
            "attention: Triton split-KV kernels of the package",
            f"KV cache: {self._cache_type}",
        ]
        if self._graphs and not quantised:
            notes.append("no CUDA graphs: the package captures EXL3 layers only")
        # Graphs at the third call; the GEMM autotuner and Triton compile on first use.
        graphs = self._graphs and quantised
        return {"cuda_graph": graphs, "warmup_min_steps": 16, "notes": notes}

    def _jobs(self, opening: Opening, settings: Any) -> JobsDrive:
        module, torch = self._module, opening.torch
        vocab = opening.files.config.vocab_size
        tokenizer = IdTokenizer(vocab, token_ids(opening.files.raw, vocab), settings)
        generator = module.Generator(self._model, self._cache, tokenizer)

        def enqueue(number: int, row: Sequence[int]) -> None:
            generator.enqueue(
                module.Job(
                    input_ids=torch.tensor([row], dtype=torch.long),
                    max_new_tokens=opening.positions - len(row) + 1,
                    sampler=self._sampler(),
                    identifier=number,
                )
            )

        forget = generator.pagetable.reset_page_table
        return JobsDrive(generator, enqueue, forget, opening.batch)

    def _prepare_forward(self, opening: Opening) -> None:
        """Put all that a step needs on the GPU, so that no step uploads (and so waits)."""
        torch = self._torch_of = opening.torch
        embedding = self._model.modules[0]
        embedding.embedding = embedding.embedding.to("cuda:0")
        embedding.device = torch.device("cuda", 0)
        pages = opening.paged_positions // PAGE
        self._table = torch.arange(opening.batch * pages, dtype=torch.int32, device="cuda:0").view(
            opening.batch, pages
        )
        self._filled = torch.zeros(opening.batch, dtype=torch.int32, device="cuda:0")

    def _forward(self, ids: Any, prompt: bool) -> Any:
        if not prompt:
            logits = self._pass(ids, self._filled)
            self._filled += 1
            return logits
        logits = None
        for start in range(0, ids.shape[1], _CHUNK):
            chunk = ids[:, start : start + _CHUNK]
            # Prefill wants the lengths on the host.
            done = self._torch_of.full((ids.shape[0],), start, dtype=self._torch_of.int32)
            logits = self._pass(chunk, done, last_tokens_only=1)
        self._filled.fill_(ids.shape[1])
        return logits

    def _pass(self, ids: Any, filled: Any, **more: Any) -> Any:
        return self._model.forward(
            ids,
            {
                "attn_mode": "flash_attn",
                "cache": self._cache,
                "block_table": self._table,
                "cache_seqlens": filled,
                **more,
            },
        )

    def _rewind(self) -> None:
        self._filled.zero_()


@contextmanager
def _pydantic_error() -> Iterator[None]:
    """exllamav3's util/memory.py imports one exception class of pydantic, which decoding never
    raises: where pydantic is absent a stand-in serves for the import, and is gone after it."""
    if "pydantic" in sys.modules or util.find_spec("pydantic") is not None:
        yield
        return
    stand_in = ModuleType("pydantic")
    stand_in.__dict__["PydanticUserError"] = type("PydanticUserError", (Exception,), {})
    sys.modules["pydantic"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pydantic"]
