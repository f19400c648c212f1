"""What the three ExLlama adapters share: checks before the engine sees anything, and the facts.

An adapter names its package and limits and opens the engine; the order of checks is here: options,
the model's headers, the package, the GPU, memory, the extension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata, util
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.engines.base import LoadRequest, Progress
from llmprof.engines.driven import DrivenEngine
from llmprof.engines.exllama.drives import Drive
from llmprof.engines.exllama.extension_build import extension_folder, extension_import
from llmprof.engines.exllama.placement import Placement, read_placement
from llmprof.engines.options import Options
from llmprof.engines.prompts import check_prompt
from llmprof.errors import LoadAgain, MissingPackage, OutOfMemory, UsageError
from llmprof.models.exllama.files import ExLlamaFiles, inspect_folder
from llmprof.models.exllama.shapes import EngineName
from llmprof.models.locate import folder_name
from llmprof.plaintext import one_line
from llmprof.records import EngineInfo

PAGE = 256
"""Positions a page of the V2 and V3 caches."""
CACHE_BITS = {"fp16": 16.0, **{f"q{bits}": bits + 0.5 for bits in range(2, 9)}}
"""Bits a KV value; quantised ones share an fp16 scale in groups of 32."""


@dataclass
class Opening:
    """One load on its way: what was asked for, what is known."""

    request: LoadRequest
    files: ExLlamaFiles
    progress: Progress
    torch: Any
    drive: str
    synchronous: bool
    batch: int
    positions: int
    """KV positions a sequence needs."""

    @property
    def paged_positions(self) -> int:
        """Rounded up to pages, with two to spare: a job that ends costs time, so none ever does."""
        return -(-(self.positions + 2) // PAGE) * PAGE

    @property
    def largest(self) -> Opening:
        """With the shape that what is made once has to suffice for."""
        asked = self.request
        return replace(
            self,
            batch=max(self.batch, asked.most_batch),
            positions=max(self.positions, asked.most_positions),
        )

    def tell(self, done: int, total: int) -> None:
        self.progress("loading weights", done / max(1, total))


class ExLlamaAdapter(DrivenEngine[Drive], ABC):
    """An ``Engine`` and a ``FreeRunningEngine``; subclasses fill the members below.

    Options of all: ``drive=generator|forward``, ``sync=1|0`` (0 with ``drive=forward`` only: the
    host runs ahead and ``decode_step`` returns ``None``); of those that ``splits``: ``tp=N``, or
    ``gpu_split=GB/GB`` for a layer split.
    """

    name: EngineName
    package: str
    tested: str
    """The package's version that the adapter was written against."""
    extension: str
    """Module name of its CUDA extension."""
    capability: tuple[int, int]
    """Lowest compute capability that its kernels build for."""
    splits = False
    """It computes on several GPUs."""

    def __init__(self) -> None:
        super().__init__()
        self._torch: Any = None
        self.placement = Placement(self.name)

    def load(self, request: LoadRequest, progress: Progress) -> None:
        given = Options(self.name, request.options)
        drive = given.text("drive", "generator", ("generator", "forward"))
        synchronous = given.flag("sync", True)
        if not synchronous and drive == "generator":
            raise UsageError(f"{self.name}:sync=0 needs drive=forward; a generator always waits")
        if self.splits:
            self.placement = read_placement(given, self.name)
            if self.placement.tp > 1 and not synchronous:
                raise UsageError(
                    f"{self.placement.option}: the host waits in every step; leave sync=0 out"
                )
        self.read_options(given)
        given.done()
        files = inspect_folder(request.model, self.name)
        self._check_context(request.max_positions, files)
        self.placement.check_shape(files.config)
        self.check_split(files, drive)
        torch = self._gpu_torch()
        self.placement.check_gpus(torch)
        opening = Opening(
            request,
            files,
            progress,
            torch,
            drive,
            synchronous,
            request.batch,
            request.max_positions,
        )
        self._torch = torch
        self._opening = opening
        self._check_memory(opening)
        found = self.found_extension()
        with extension_import(self.name, self.extension, found, progress):
            self.import_package(opening)
        with self._memory_errors("the model and its KV cache"):
            self._drive = self.open(opening)
        self._batch, self._positions = opening.batch, opening.positions
        self._vocab = files.config.vocab_size
        self._info = self._describe(opening)

    def reshape(self, batch: int, max_positions: int) -> None:
        opening = replace(self._opening, batch=batch, positions=max_positions)
        self._check_context(max_positions, opening.files)
        self.check_refit(opening)
        self._drive = None
        self.drop_cache()
        self._torch.cuda.empty_cache()
        self._check_room("the KV cache needs", self._cache_bytes(opening))
        with self._memory_errors("the KV cache"):
            self._drive = self.refit(opening)
        self._batch, self._positions = batch, max_positions

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        check_prompt(self.name, prompt_ids, self._batch, self._vocab, self._positions)
        with self._memory_errors("the prompt"):
            return self._ready().prefill(prompt_ids)

    def decode_step(self) -> Sequence[int] | None:
        return self._ready().step()

    def finish_round(self) -> Sequence[Sequence[int]]:
        """The tokens of every free-running step since ``prefill``; waits for the GPU."""
        return self._ready().finish()

    def close(self) -> None:
        if self._drive is not None:
            self._drive = None
            self.free()
            self._torch.cuda.empty_cache()

    # What an adapter fills in.

    @abstractmethod
    def read_options(self, given: Options) -> None:
        """Read and keep the engine's own options."""

    def check_split(self, files: ExLlamaFiles, drive: str) -> None:
        """Raise ``UsageError`` for a model that the package does not split as asked."""

    @abstractmethod
    def import_package(self, opening: Opening) -> None:
        """Import the package; its extension is built meanwhile.

        Raises:
            MissingPackage: one of its dependencies is not installed.
        """

    @abstractmethod
    def open(self, opening: Opening) -> Drive:
        """Load the weights, allocate the cache."""

    def check_refit(self, opening: Opening) -> None:
        """Can the loaded model get this shape?

        Raises:
            LoadAgain: no; nothing has changed.
            UsageError: it could not be loaded for it either.
        """
        raise LoadAgain(f"{self.name}'s buffers are made for one batch and context")

    def drop_cache(self) -> None:
        """Let go of the cache and of all that refers to it."""

    def refit(self, opening: Opening) -> Drive:
        """Another cache and drive on the loaded model, after ``check_refit``."""
        raise NotImplementedError

    @abstractmethod
    def free(self) -> None:
        """Let go of the model and its cache."""

    @abstractmethod
    def workspace_bytes(self, opening: Opening) -> int:
        """Scratch memory on the GPU beside weights and cache, at the least."""

    def cache_positions(self, opening: Opening) -> int:
        """KV positions a sequence gets."""
        return opening.paged_positions

    cache_bits: float = 16.0
    """Bits a KV value."""

    @abstractmethod
    def facts(self, opening: Opening) -> dict[str, Any]:
        """Fields of ``EngineInfo`` that only the engine knows."""

    # What they share.

    def found_extension(self) -> str:
        """Where a ready-made extension would lie under ``LLMPROF_EXTENSIONS_DIR``."""
        capability = self._torch.cuda.get_device_capability(0)
        return extension_folder(self.package, self.version(), capability)

    def version(self) -> str:
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return "unknown"  # sources on PYTHONPATH

    def missing(self, why: object) -> MissingPackage:
        return MissingPackage(
            f"engine {self.name!r} needs the package {self.package} ({one_line(str(why), 120)});"
            f" install it with: pip install {self.package}=={self.tested}"
        )

    def _gpu_torch(self) -> Any:
        """torch, once the package is known to be there and the GPU to be good enough."""
        if util.find_spec(self.package) is None:
            raise self.missing("not installed")
        try:
            import torch
        except ImportError as why:
            raise MissingPackage(
                f"engine {self.name!r} needs torch ({why}); install it with:"
                f" {how_to_install('torch')}"
            ) from None
        if not torch.cuda.is_available():
            raise UsageError(
                f"{self.name}: torch {torch.__version__} sees no CUDA GPU, and ExLlama has no CPU"
                " path; the engines torch and llamacpp run on a CPU"
            )
        found = torch.cuda.get_device_capability(0)
        if found < self.capability:
            name = one_line(torch.cuda.get_device_name(0), 60)
            raise UsageError(
                f"{self.name}: {name} has compute capability {found[0]}.{found[1]};"
                f" {self.package} needs {self.capability[0]}.{self.capability[1]} or newer"
            )
        return torch

    def _kv_bytes_per_token(self, files: ExLlamaFiles) -> int:
        return int(files.config.kv_bytes_per_token(1) * self.cache_bits / 8)

    def _check_memory(self, opening: Opening) -> None:
        """Raise before the engine dies of it; the estimate is a lower bound."""
        files = opening.files
        on_host = files.embedding_bytes if self._embeds_on_host(opening) and not files.tied else 0
        need = files.file_bytes - on_host + self._cache_bytes(opening)
        need += self.workspace_bytes(opening.largest)
        self._check_room("weights, KV cache and workspace need", need)

    def _cache_bytes(self, opening: Opening) -> int:
        positions = opening.batch * self.cache_positions(opening)
        return self._kv_bytes_per_token(opening.files) * positions

    def _check_room(self, what: str, need: int) -> None:
        self.placement.check_room(self._torch, what, need)

    def _embeds_on_host(self, opening: Opening) -> bool:
        """Tensor parallelism gets its hidden states from the host."""
        return opening.drive == "generator" or self.placement.tp > 1

    def _check_context(self, positions: int, files: ExLlamaFiles) -> None:
        limit = files.config.max_position_embeddings
        if positions > limit:
            raise UsageError(
                f"{self.name}: {positions} positions asked for, but the context of the model is"
                f" {limit}; shorten --prompt-len or --decode-len"
            )

    @contextmanager
    def _memory_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as why:
            # torch.cuda.OutOfMemoryError, or the plain RuntimeError of an extension.
            if "out of memory" not in str(why):
                raise
            raise OutOfMemory(
                f"{self.name}: {what} did not fit on {self.placement.words};"
                f" {self.placement.free_words(self._torch)}"
            ) from None

    def _describe(self, opening: Opening) -> EngineInfo:
        files, torch = opening.files, opening.torch
        version = self.version()
        facts = self.facts(opening)
        notes = [*files.notes, *facts.pop("notes")]
        if version != self.tested:
            notes.append(f"written against {self.package} {self.tested}")
        on_host = self._embeds_on_host(opening)
        where = "CPU, as the package does by default" if on_host else "GPU"
        notes.append(f"embedding table on the {where}")
        if self.placement.gpu_split:
            notes.append("layers lie on several GPUs: one waits while another computes")
        share = self.placement.tp
        if share > 1:
            notes.append(f"tensor parallel over {share} GPUs: sizes and bytes are one GPU's")
        return EngineInfo(
            versions={
                self.package: version,
                "torch": str(torch.__version__),
                "cuda": str(torch.version.cuda),
            },
            model=folder_name(files.folder),
            model_format=files.format_text,
            parameters=files.config.parameters,
            bits_per_weight=files.bits_per_weight,
            weight_bytes_per_step=files.step_bytes // share,
            kv_bytes_per_token=self._kv_bytes_per_token(files) // share,
            context_limit=files.config.max_position_embeddings,
            vocab_size=files.config.vocab_size,
            device=self.placement.words,
            dtype="fp16",
            drive=opening.drive,
            synchronous=opening.synchronous,
            options=dict(opening.request.options),
            notes=notes,
            weights_id=files.weights_id,
            projections=files.projections if share == 1 else None,
            ranks=share,
            **facts,
        )
