"""ExLlamaV2: EXL2, GPTQ or fp16, its own CUDA graphs, its own high-priority stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from llmprof.engines.exllama.adapter import CACHE_BITS, PAGE, ExLlamaAdapter, Opening
from llmprof.engines.exllama.drives import Drive, ForwardDrive, JobsDrive
from llmprof.engines.exllama.id_tokenizer import IdTokenizer, token_ids
from llmprof.engines.options import Options
from llmprof.engines.pytorch.attention import PLANNED, leave_cudnn_out, planned
from llmprof.errors import LoadAgain, UsageError

_CHUNK = 2048
"""Prompt positions a forward pass: the package's own default."""
_CACHES = {
    "fp16": "ExLlamaV2Cache",
    "q8": "ExLlamaV2Cache_Q8",
    "q6": "ExLlamaV2Cache_Q6",
    "q4": "ExLlamaV2Cache_Q4",
}
_ATTENTION = ("auto", "flash", "xformers", "sdpa", "matmul")
_MAX_DQ = 512 << 20
"""``config.max_dq_size``: elements dequantised at once."""


class ExLlamaV2Engine(ExLlamaAdapter):
    """Options beside those of all: ``graphs=1|0``, ``cache=fp16|q8|q6|q4``,
    ``attention=auto|flash|xformers|sdpa|matmul`` (auto: the first of flash, xformers, sdpa),
    ``cudnn_attention=1|0`` (0: sdpa without cuDNN)."""

    name = "exllamav2"
    package = "exllamav2"
    tested = "0.3.2"
    extension = "exllamav2_ext"
    capability = (6, 0)

    def read_options(self, given: Options) -> None:
        self._graphs = given.flag("graphs", True)
        self._cache_type = given.text("cache", "fp16", tuple(_CACHES))
        self._attention = given.text("attention", "auto", _ATTENTION)
        self._cudnn = given.flag("cudnn_attention", True)
        self.cache_bits = CACHE_BITS[self._cache_type]

    def import_package(self, opening: Opening) -> None:
        try:
            self._module = import_module("exllamav2")
            self._generator_module = import_module("exllamav2.generator")
            attn = import_module("exllamav2.attn")
        except ImportError as why:
            raise self.missing(why) from None
        self._attention = chosen_attention(
            self._attention, bool(attn.has_flash_attn), bool(attn.has_xformers)
        )
        self._paged = self._attention == "flash" and bool(attn.has_flash_attn_with_paged)
        self._check_batch(opening)

    def _check_batch(self, opening: Opening) -> None:
        if opening.batch > 1 and opening.drive == "generator" and not self._paged:
            raise UsageError(
                f"exllamav2: batch {opening.batch} with drive=generator needs paged attention"
                " (flash-attn 2.5.7 or newer); use drive=forward, or --batch 1"
            )

    def open(self, opening: Opening) -> Drive:
        files = opening.files
        forward = opening.drive == "forward"
        if not self._cudnn:
            leave_cudnn_out(opening.torch)
        settings = self._module.ExLlamaV2Config(str(files.folder))
        self._settings = settings
        # Scratch memory and RoPE tables are made once, when the model is loaded.
        self._size(opening.largest)
        settings.no_graphs = not self._graphs
        settings.no_flash_attn = self._attention != "flash"
        settings.no_xformers = self._attention != "xformers"
        settings.no_sdpa = self._attention == "matmul"
        self._model = self._module.ExLlamaV2(settings)
        if forward:
            place = self._model.set_device_map
            self._model.set_device_map = partial(place, embed_cpu=False)
        self._model.load(callback=opening.tell)
        return self.refit(opening)

    def check_refit(self, opening: Opening) -> None:
        self._check_batch(opening)
        most = self._opening.largest
        if opening.batch > most.batch or opening.positions > most.positions:
            raise LoadAgain(
                f"its scratch memory is for batch {most.batch} and {most.positions} positions"
            )

    def drop_cache(self) -> None:
        del self._cache

    def refit(self, opening: Opening) -> Drive:
        files, forward = opening.files, opening.drive == "forward"
        self._size(opening)
        make = getattr(self._module, _CACHES[self._cache_type])
        if forward:
            self._cache = make(
                self._model, batch_size=opening.batch, max_seq_len=opening.paged_positions
            )
            opening.torch.cuda.synchronize()
            return ForwardDrive(
                opening.torch,
                self._forward,
                self._rewind,
                opening.torch.inference_mode,
                files.config.vocab_size,
                opening.synchronous,
            )
        self._cache = make(self._model, max_seq_len=opening.paged_positions * opening.batch)
        opening.torch.cuda.synchronize()
        return self._jobs(opening)

    def _size(self, opening: Opening) -> None:
        """The shape that the package reads at every call: how it cuts a prompt into pieces."""
        settings = self._settings
        settings.max_seq_len = opening.paged_positions
        settings.max_input_len = self._input_length(opening)
        settings.max_batch_size = opening.batch if opening.drive == "forward" else 1

    def free(self) -> None:
        self._model.unload()
        del self._model
        self.drop_cache()

    def workspace_bytes(self, opening: Opening) -> int:
        """The fixed scratch of device.py: one fp16 matrix dequantised, states of one prompt."""
        config = opening.files.config
        if opening.files.format == "fp16":
            return 0
        matrix = config.hidden_size * config.intermediate_size
        rows = self._input_length(opening) * (opening.batch if opening.drive == "forward" else 1)
        return 2 * min(matrix, _MAX_DQ) + 2 * rows * (config.hidden_size + config.intermediate_size)

    def facts(self, opening: Opening) -> dict[str, Any]:
        quantised = opening.files.format != "fp16"
        graphs = self._graphs and quantised
        notes = [
            "stream: its own, of high priority",
            f"attention: {self._attention}{', paged' if self._paged else ''}",
            f"KV cache: {self._cache_type}",
        ]
        if quantised:
            notes.append("sums with atomics: greedy tokens may differ between runs")
        elif self._graphs:
            notes.append("no CUDA graphs: the package captures quantised layers only")
        if self._attention == "sdpa":
            notes.append(
                "prefill attends by matmul: the SDPA prefill of exllamav2 0.3.2 has no causal mask"
            )
        # Modules are captured at their 205th call (MIN_GRAPH_INSTANCES in graph.cuh); the GEMM of
        # EXL2 tries block sizes over 200 launches a shape (AT_NUM_MEASURE in q_gemm_autotune.cuh).
        late = graphs or opening.files.format == "exl2"
        return {
            "cuda_graph": graphs,
            "warmup_min_steps": 208 if late else 8,
            "warmup_lengths": PLANNED if self._plans(opening) else "",
            "notes": notes,
        }

    def _plans(self, opening: Opening) -> bool:
        """attn.py gives SDPA the K and V of each query head."""
        config, torch = opening.files.config, opening.torch
        heads, size = config.num_attention_heads, config.head_dim
        sdpa = self._attention == "sdpa"
        return sdpa and planned(torch, "cuda:0", torch.float16, heads, 1, size)

    def _jobs(self, opening: Opening) -> JobsDrive:
        torch, generators = opening.torch, self._generator_module
        vocab = opening.files.config.vocab_size
        tokenizer = IdTokenizer(vocab, token_ids(opening.files.raw, vocab), self._settings)
        generator = generators.ExLlamaV2DynamicGenerator(
            self._model,
            self._cache,
            tokenizer,
            max_batch_size=opening.batch,
            max_q_size=1,
            paged=self._paged,
        )

        def enqueue(number: int, row: Sequence[int]) -> None:
            generator.enqueue(
                generators.ExLlamaV2DynamicJob(
                    input_ids=torch.tensor([row], dtype=torch.long),
                    max_new_tokens=opening.positions - len(row) + 1,
                    gen_settings=generators.ExLlamaV2Sampler.Settings.greedy(),
                    identifier=number,
                )
            )

        return JobsDrive(
            generator, enqueue, generator.reset_page_table, opening.batch, self._masked_prefill
        )

    def _input_length(self, opening: Opening) -> int:
        return min(_CHUNK, -(-opening.positions // PAGE) * PAGE)

    @contextmanager
    def _masked_prefill(self) -> Iterator[None]:
        """attn.py reads ``no_sdpa`` at every call; its SDPA branch never builds the causal mask."""
        self._settings.no_sdpa = True
        try:
            yield
        finally:
            self._settings.no_sdpa = self._attention == "matmul"

    def _forward(self, ids: Any, prompt: bool) -> Any:
        if prompt:
            with self._masked_prefill():
                return self._model.forward(ids, self._cache, last_id_only=True)
        return self._model.forward(ids, self._cache, last_id_only=True)

    def _rewind(self) -> None:
        self._cache.current_seq_len = 0


def chosen_attention(asked: str, flash: bool, xformers: bool) -> str:
    """The attention path, given which packages are installed.

    Raises:
        UsageError: asked for a package that is not there.
    """
    if asked == "auto":
        return "flash" if flash else "xformers" if xformers else "sdpa"
    if (asked == "flash" and not flash) or (asked == "xformers" and not xformers):
        package = "flash-attn" if asked == "flash" else "xformers"
        raise UsageError(f"exllamav2:attention={asked} needs {package}: pip install {package}")
    return asked
