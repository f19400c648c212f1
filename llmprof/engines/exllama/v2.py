"""ExLlamaV2: EXL2, GPTQ or fp16, its own CUDA graphs, its own high-priority stream; on one GPU,
layer after layer on several, or tensor parallel (one process, sums by way of host memory)."""

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
from llmprof.errors import LoadAgain, OutOfMemory, UsageError
from llmprof.models.exllama.files import ExLlamaFiles

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
    splits = True

    def read_options(self, given: Options) -> None:
        self._graphs = given.flag("graphs", True)
        self._cache_type = given.text("cache", "fp16", tuple(_CACHES))
        self._attention = given.text("attention", "auto", _ATTENTION)
        self._cudnn = given.flag("cudnn_attention", True)
        self.cache_bits = CACHE_BITS[self._cache_type]
        if self.placement.tp > 1 and self._attention not in ("auto", "flash", "sdpa"):
            raise UsageError(
                f"{self.placement.option}: attention={self._attention} computes on one GPU;"
                " choose flash or sdpa"
            )

    def check_split(self, files: ExLlamaFiles, drive: str) -> None:
        if self.placement.tp < 2:
            return
        option, config = self.placement.option, files.config
        # linear.py, tp_split: "Can only split fully loaded EXL2 tensor", the head's too.
        if files.format != "exl2":
            raise UsageError(
                f"{option}: exllamav2 splits EXL2 matrices only, this model is {files.format};"
                " gpu_split=GB/GB puts whole layers on GPUs"
            )
        if "lm_head.q_weight" not in files.tensors:
            raise UsageError(
                f"{option}: exllamav2 splits an EXL2 output head only, this one is fp16;"
                " llmprof model synth --head-bits 6 makes another"
            )
        for name, size, unit in (
            ("inner size", config.intermediate_size, 128),
            ("hidden size", config.hidden_size, 32),
        ):
            if size % unit or size // unit < self.placement.tp:
                raise UsageError(
                    f"{option}: the {name} of {size} does not divide among"
                    f" {self.placement.tp} GPUs in multiples of {unit}"
                )

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
        if self.placement.tp > 1:
            self._check_parallel(attn)
        self._check_batch(opening)

    def _check_parallel(self, attn: Any) -> None:
        """Is the package new enough? And the attention must be one that it splits."""
        if not hasattr(self._module.ExLlamaV2, "load_tp"):
            raise UsageError(
                f"{self.placement.option}: exllamav2 {self.version()} has no tensor parallelism;"
                f" install {self.tested}"
            )
        if self._attention == "xformers":
            self._attention = "sdpa"
        if self._attention == "sdpa" and not attn.has_lower_right_sdpa:
            raise UsageError(
                f"{self.placement.option} needs flash-attn, or torch 2.4 or newer for sdpa"
            )

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
        if self.placement.tp > 1:
            self._model.load_tp(
                gpu_split=self.placement.equal_gb(opening.torch),
                callback=opening.tell,
                expect_cache_tokens=opening.largest.batch * opening.largest.paged_positions,
                expect_cache_base=getattr(self._module, _CACHES[self._cache_type]),
            )
            return self.refit(opening)
        if forward:
            place = self._model.set_device_map
            self._model.set_device_map = partial(place, embed_cpu=False)
        split = list(self.placement.gpu_split) or None
        try:
            self._model.load(gpu_split=split, callback=opening.tell)
        except AssertionError as why:
            if "Insufficient space" not in str(why):
                raise
            raise OutOfMemory(
                f"{self.placement.option}: the layers and their scratch memory need more than that"
            ) from None
        if split:
            self._check_layers()
        return self.refit(opening)

    def _check_layers(self) -> None:
        """Every GPU that was asked for got a layer."""
        used = {int(name.partition(":")[2]) for name in self._model.get_cache_devices()}
        empty = [n for n in self.placement.devices if n not in used]
        if empty:
            raise UsageError(
                f"{self.placement.option}: all layers fit into the GPUs before GPU {empty[0]};"
                " give those fewer GB"
            )

    def _make_cache(self, batch: int, positions: int) -> Any:
        make = getattr(self._module, _CACHES[self._cache_type])
        sizes = {"batch_size": batch, "max_seq_len": positions}
        if self.placement.tp > 1:
            return self._module.ExLlamaV2Cache_TP(self._model, base=make, **sizes)
        return make(self._model, **sizes)

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
        if forward:
            self._cache = self._make_cache(opening.batch, opening.paged_positions)
            opening.torch.cuda.synchronize()
            return ForwardDrive(
                opening.torch,
                self._forward_parallel if self.placement.tp > 1 else self._forward,
                self._rewind,
                opening.torch.inference_mode,
                files.config.vocab_size,
                opening.synchronous,
                # Tensor parallelism takes ids and gives logits on the host.
                "cpu" if self.placement.tp > 1 else f"cuda:{self.placement.devices[0]}",
            )
        self._cache = self._make_cache(1, opening.paged_positions * opening.batch)
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
        parallel = self.placement.tp > 1
        graphs = self._graphs and quantised and not parallel
        notes = [
            "stream: its own, of high priority",
            f"attention: {self._attention}{', paged' if self._paged else ''}",
            f"KV cache: {self._cache_type}",
        ]
        if quantised:
            notes.append("sums with atomics: greedy tokens may differ between runs")
        if parallel:
            notes.append("GPUs exchange their parts through host memory: copies, no collectives")
        if self._graphs and not graphs:
            why = (
                "has none with tensor parallelism" if parallel else "captures quantised layers only"
            )
            notes.append(f"no CUDA graphs: the package {why}")
        if self._attention == "sdpa" and parallel:
            notes.append(
                "prefill attends with a causal mask of llmprof's: exllamav2 0.3.2 has none"
            )
        elif self._attention == "sdpa":
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
        first = f"cuda:{self.placement.devices[0]}"
        share = heads // self.placement.tp
        return sdpa and planned(torch, first, torch.float16, share, 1, size)

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
        if self.placement.tp > 1:
            with causal_masks(self._attention_module().Params):
                yield
            return
        with self._without_sdpa():
            yield

    @contextmanager
    def _without_sdpa(self) -> Iterator[None]:
        """attn.py reads ``no_sdpa`` at every call; its SDPA branch never builds the causal mask."""
        self._settings.no_sdpa = True
        try:
            yield
        finally:
            self._settings.no_sdpa = self._attention == "matmul"

    def _forward(self, ids: Any, prompt: bool) -> Any:
        if self.placement.gpu_split:
            # The token was chosen where the head is; the package moves states, not ids.
            ids = ids.to(f"cuda:{self.placement.devices[0]}")
        if prompt:
            with self._masked_prefill():
                return self._model.forward(ids, self._cache, last_id_only=True)
        return self._model.forward(ids, self._cache, last_id_only=True)

    def _forward_parallel(self, ids: Any, prompt: bool) -> Any:
        """The final norm of a split model gives a list, of which ``last_id_only`` cannot take the
        last position: so the prompt goes through without its last token first."""
        if prompt and ids.shape[1] > 1:
            with self._masked_prefill():
                self._model.forward(ids[:, :-1], self._cache, preprocess_only=True)
        return self._model.forward(ids[:, -1:], self._cache)

    def _attention_module(self) -> Any:
        return import_module("exllamav2.attn").ExLlamaV2Attention

    def _rewind(self) -> None:
        self._cache.current_seq_len = 0


@contextmanager
def causal_masks(params: Any) -> Iterator[None]:
    """Within it SDPA attends causally: ``_attn_torch`` of attn.py takes its mask from
    ``get_block_diag_mask`` whenever it should be causal, which gives none for one sequence.

    Args:
        params: the package's class of attention parameters.
    """
    real = params.get_block_diag_mask

    def mask(self: Any, device: Any) -> Any:
        found = real(self, device)
        if found is not None or self.seq_len == 1:
            return found
        import torch

        row = torch.arange(self.past_len, self.past_len + self.seq_len, device=device)
        column = torch.arange(self.past_len + self.seq_len, device=device)
        return column <= row[:, None]

    params.get_block_diag_mask = mask
    try:
        yield
    finally:
        params.get_block_diag_mask = real


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
