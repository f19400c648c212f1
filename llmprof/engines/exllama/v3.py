"""ExLlamaV3: EXL3 or fp16, its own CUDA graphs, Triton attention over a paged cache; on one GPU,
layer after layer on several, or tensor parallel with a process a GPU (``v3_ranks``)."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, util
from types import ModuleType
from typing import Any

from llmprof.engines.base import trace_words
from llmprof.engines.exllama.adapter import CACHE_BITS, PAGE, ExLlamaAdapter, Opening
from llmprof.engines.exllama.drives import Drive, ForwardDrive, JobsDrive
from llmprof.engines.exllama.heartbeat import heartbeat
from llmprof.engines.exllama.id_tokenizer import IdTokenizer, token_ids
from llmprof.engines.exllama.v3_ranks import RankProcesses
from llmprof.engines.options import Options
from llmprof.errors import OutOfMemory, UsageError
from llmprof.models.exllama.files import ExLlamaFiles
from llmprof.records.processes import RankProcess

_CHUNK = 2048
"""Prompt positions a forward pass: the generator's own default."""
_CACHES = ("fp16", "q8", "q7", "q6", "q5", "q4", "q3", "q2")


class ExLlamaV3Engine(ExLlamaAdapter):
    """Options beside those of all: ``graphs=1|0``, ``cache=fp16|q8|…|q2``,
    ``tp_backend=native|nccl``: sums in host memory, or NCCL's all-reduce.
    """

    name = "exllamav3"
    package = "exllamav3"
    tested = "1.6.5"
    extension = "exllamav3_ext"
    capability = (7, 5)
    splits = True

    def __init__(self) -> None:
        super().__init__()
        self._ranks: RankProcesses | None = None
        self._begun: dict[int, str] = {}

    def read_options(self, given: Options) -> None:
        self._graphs = given.flag("graphs", True)
        self._cache_type = given.text("cache", "fp16", _CACHES)
        self.cache_bits = CACHE_BITS[self._cache_type]
        self._backend = given.text("tp_backend", "native", ("native", "nccl"))

    def check_split(self, files: ExLlamaFiles, drive: str) -> None:
        place = self.placement
        if len(place.devices) > 1 and drive == "forward":
            raise UsageError(f"{place.option}: on several GPUs exllamav3 has drive=generator only")

    def import_package(self, opening: Opening) -> None:
        # graph.cu reads it once, at the first capture.
        os.environ["EXL3_GRAPHS"] = "1" if self._graphs else "0"
        try:
            with pydantic_stand_in():
                self._module = import_module("exllamav3")
                samplers = import_module("exllamav3.generator.sampler")
        except ImportError as why:
            raise self.missing(why) from None
        self._sampler = samplers.ArgmaxSampler
        known = inspect.signature(self._module.Model.load_gen).parameters
        if self.placement.tp > 1 and not {"tensor_p", "tp_backend"} <= set(known):
            raise UsageError(
                f"{self.placement.option}: exllamav3 {self.version()} has no tensor parallelism;"
                f" install {self.tested}"
            )

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
            self._load_weights(opening)
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

    def _load_weights(self, opening: Opening) -> None:
        place = self.placement
        # A measuring pass of that length goes through the cache, which must hold it.
        chunk = min(_CHUNK, opening.paged_positions)
        if place.tp > 1:
            self._load_parallel(opening, chunk)
        elif place.gpu_split:
            try:
                self._model.load(use_per_device=list(place.gpu_split), max_chunk_size=chunk)
            except RuntimeError as why:
                if "Insufficient VRAM" not in str(why):
                    raise
                raise OutOfMemory(
                    f"{place.option}: weights and KV cache need more than that"
                ) from None
            used = {
                module.device.index
                for module in self._model.modules
                if getattr(module.device, "type", "") == "cuda"
            }
            if empty := [n for n in place.devices if n not in used]:
                raise UsageError(
                    f"{place.option}: all layers fit into the GPUs before GPU {empty[0]};"
                    " give those fewer GB"
                )
        else:
            self._model.load(device=opening.torch.device("cuda", 0))

    def _load_parallel(self, opening: Opening, chunk: int) -> None:
        """One process a GPU. What compiles at first use does it before ranks wait for one another:
        a collective of the package gives up on a rank that compiles for too long."""
        asked = opening.request
        built = getattr(sys.modules.get(self.extension), "__file__", None) or ""
        self._ranks = ranks = RankProcesses(asked.spool, asked.trace, (self.extension, built))
        with ranks.started_by(import_module("exllamav3.model.model_tp")), ranks.failures():
            self._model.load(
                tensor_p=True,
                tp_backend=self._backend,
                use_per_device=self.placement.equal_gb(opening.torch),
                max_chunk_size=chunk,
                max_output_size=1,
            )
            self._model.warmup(
                self._cache,
                max_chunk_size=chunk,
                max_batch_size=opening.batch,
                max_q_len=1,
                long_context=False,
            )

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        if self._ranks is None:
            return super().prefill(prompt_ids)
        with self._ranks.failures():
            return super().prefill(prompt_ids)

    def decode_step(self) -> Sequence[int] | None:
        if self._ranks is None:
            return super().decode_step()
        with self._ranks.failures():
            return super().decode_step()

    def ranks(self) -> Sequence[RankProcess]:
        if self._ranks is None:
            return [RankProcess(0, os.getpid(), self.placement.words)]
        return self._ranks.all

    def start_metronomes(self, boards: dict[int, str], tick_ns: int, reader: int) -> dict[int, int]:
        if self._ranks is None or not boards:
            return {}
        ask = {"do": "metronome", "tick_ns": tick_ns, "reader": reader}
        found = self._ranks.ask({rank: {**ask, "board": path} for rank, path in boards.items()})
        return {rank: int(facts["pid"]) for rank, facts in found.items()}

    def start_rank_traces(self, serial: int) -> None:
        if self._ranks is not None:
            self._model.tp_drain_acks()  # so that no rank is still launching
            found = self._ranks.ask_all({"do": "begin_trace", "serial": serial})
            self._begun = {rank: str(facts["unavailable"]) for rank, facts in found.items()}

    def stop_rank_traces(self, serial: int) -> dict[int, str]:
        if self._ranks is None:
            return {}
        self._model.tp_drain_acks()
        found = self._ranks.ask_all({"do": "end_trace", "serial": serial})
        return {rank: self._begun.get(rank) or trace_words(facts) for rank, facts in found.items()}

    def free(self) -> None:
        if self._ranks is not None:
            self._ranks.closing()
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
        found = {"cuda_graph": graphs, "warmup_min_steps": 16, "notes": notes}
        if self.placement.tp > 1:
            nccl = self._backend == "nccl"
            notes.append(
                "GPUs sum by NCCL's all-reduce" if nccl else "GPUs sum by way of host memory"
            )
            # Two bytes a value each way (model_tp_backend.py, all_reduce_cpu.cu).
            size = 2 * opening.batch * opening.files.config.hidden_size
            found["collective_bytes"] = {"AllReduce" if nccl else "Receive": size}
        return found

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
def pydantic_stand_in() -> Iterator[None]:
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
