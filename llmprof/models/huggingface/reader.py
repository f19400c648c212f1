"""Llama weights out of a Hugging Face folder of safetensors: fp16, bf16, fp32, or 4-bit GPTQ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage, ModelError
from llmprof.models.huggingface.config import our_notes, weights_id
from llmprof.models.huggingface.files import HARMLESS, weight_files
from llmprof.models.huggingface.gptq import (
    PARTS,
    V2_NOTE,
    check_projection,
    is_gptq,
    read_projection,
    zeros_version,
)
from llmprof.models.locate import read_json
from llmprof.models.presets import EMBEDDING, HEAD, LlamaConfig
from llmprof.plaintext import one_line

_DTYPES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


class SafetensorsWeights:
    """A ``WeightSource`` over one folder: ``config.json`` and one or many shards."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check.

        Raises:
            ModelError: corrupt, not a Llama, a tensor missing, misshapen or of another type.
            MissingPackage: no ``safetensors`` package.
        """
        try:
            import safetensors
        except ImportError:
            raise MissingPackage(
                "safetensors weights need the package safetensors;"
                f" install it with: {how_to_install('torch')}"
            ) from None
        folder = Path(path)
        self.rope_factors: Any | None = None
        document = read_json(folder / "config.json")
        self.notes = our_notes(document)
        self._gptq = is_gptq(document)
        settings = dict(document)
        if self._gptq:
            settings.pop("quantization_config")
        self.config = LlamaConfig.from_hf(settings)
        files, notes = weight_files(folder)
        self.notes += notes
        self._stack = ExitStack()
        self._shard_of: dict[str, tuple[str, Any]] = {}
        for file in files:
            self._open(safetensors, file)
        self._untie()
        wanted = self.config.tensor_shapes()
        dtypes = {self._check(name, shape) for name, shape in wanted.items()}
        self._refuse_unused(wanted)
        self._version: Literal[1, 2] = 1
        if self._gptq:
            self._version = zeros_version(self._tensor, map(_key, filter(self._packed, wanted)))
            if self._version == 2:
                self.notes.append(V2_NOTE)
        self.format = "safetensors " + ("gptq" if self._gptq else "+".join(sorted(dtypes)))
        self.weights_id = weights_id(document, files)

    def read(self, name: str) -> Any:
        if self._packed(name):
            return read_projection(self._tensor, _key(name), self._version)
        return self._shard_of[name][1].get_tensor(name)

    def close(self) -> None:
        self._shard_of.clear()
        self._stack.close()

    def _open(self, safetensors: Any, file: Path) -> None:
        shown = one_line(str(file))
        try:
            shard = self._stack.enter_context(
                safetensors.safe_open(str(file), framework="pt", device="cpu")
            )
        except (OSError, safetensors.SafetensorError) as why:
            raise ModelError(f"{shown}: corrupt safetensors: {one_line(str(why))}") from None
        for name in shard.keys():  # noqa: SIM118 - not a mapping
            if name in self._shard_of:
                raise ModelError(
                    f"{shown}: tensor {one_line(name, 80)} is in {self._shard_of[name][0]} as well;"
                    " leave the files of one model in the folder"
                )
            self._shard_of[name] = (shown, shard)

    def _untie(self) -> None:
        """A head that ``config.json`` ties but the file holds with other values is its own: so
        transformers 5 has it, where older ones overwrote it."""
        if not (self.config.tie_word_embeddings and HEAD in self._shard_of):
            return
        head, table = self._tensor(HEAD), self._tensor(EMBEDDING)
        if table is not None and head.equal(table.to(head.dtype)):
            return
        self.config = replace(self.config, tie_word_embeddings=False)
        self.notes.append(
            f"{HEAD} differs from the embedding table, though config.json ties them: loaded as a"
            " head of its own"
        )

    def _refuse_unused(self, wanted: Mapping[str, Any]) -> None:
        """A tensor that is left out (a bias, a norm of q) would give other tokens."""
        used = {HEAD, *wanted}
        for name in filter(self._packed, wanted):
            used.update(f"{_key(name)}.{part}" for part in PARTS)
        for name, (shown, _) in self._shard_of.items():
            if name in used or name.endswith(HARMLESS):
                continue
            if name.endswith(".bias") and not bool(self._tensor(name).any()):
                continue  # old GPTQ converters gave every projection one of zeros
            raise ModelError(
                f"{shown}: tensor {one_line(name, 80)} is nothing that this engine computes with,"
                " and config.json does not promise it"
            )

    def _packed(self, name: str) -> bool:
        return self._gptq and name.endswith("_proj.weight")

    def _tensor(self, name: str) -> Any:
        return self._shard_of[name][1].get_tensor(name) if name in self._shard_of else None

    def _slice(self, name: str) -> Any:
        return self._shard_of[name][1].get_slice(name) if name in self._shard_of else None

    def _check(self, name: str, shape: tuple[int, ...]) -> str:
        if self._packed(name):
            check_projection(self._slice, _key(name), shape)
            return "gptq"
        if name not in self._shard_of:
            raise ModelError(f"tensor {name} is in none of the model's safetensors files")
        shown, shard = self._shard_of[name]
        view = shard.get_slice(name)
        found, dtype = tuple(view.get_shape()), str(view.get_dtype())
        if found != shape:
            raise ModelError(
                f"{shown}: tensor {name} has shape {list(found)}, config.json says {list(shape)}"
            )
        if dtype not in _DTYPES:
            raise ModelError(
                f"{shown}: tensor {name} is {one_line(dtype, 20)};"
                " this engine loads fp16, bf16 or fp32 weights"
            )
        return _DTYPES[dtype]


def _key(name: str) -> str:
    return name.removesuffix(".weight")
