"""Llama weights out of a Hugging Face folder of safetensors: fp16, bf16, fp32, or 4-bit GPTQ."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage, ModelError
from llmprof.models.huggingface.config import our_notes, weights_id
from llmprof.models.huggingface.gptq import check_projection, is_gptq, read_projection
from llmprof.models.locate import read_json
from llmprof.models.presets import HEAD, LlamaConfig
from llmprof.plaintext import one_line

_INDEX = "model.safetensors.index.json"
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
        settings = read_json(folder / "config.json")
        self.notes = our_notes(settings)
        self._gptq = is_gptq(settings)
        if self._gptq:
            settings.pop("quantization_config")
        self.config = LlamaConfig.from_hf(settings)
        files = _shards(folder)
        self._stack = ExitStack()
        self._shard_of: dict[str, tuple[str, Any]] = {}
        for file in files:
            shown = one_line(str(file))
            try:
                shard = self._stack.enter_context(
                    safetensors.safe_open(str(file), framework="pt", device="cpu")
                )
            except (OSError, safetensors.SafetensorError) as why:
                raise ModelError(f"{shown}: corrupt safetensors: {one_line(str(why))}") from None
            for name in shard.keys():  # noqa: SIM118 - not a mapping
                self._shard_of[name] = (shown, shard)
        if self.config.tie_word_embeddings and HEAD in self._shard_of:
            self.notes.append("lm_head.weight is in the file but tied by config.json: not loaded")
        dtypes = {self._check(name, shape) for name, shape in self.config.tensor_shapes().items()}
        self.format = "safetensors " + ("gptq" if self._gptq else "+".join(sorted(dtypes)))
        self.weights_id = weights_id(settings, files)

    def read(self, name: str) -> Any:
        if self._packed(name):
            return read_projection(self._tensor, name.removesuffix(".weight"))
        return self._shard_of[name][1].get_tensor(name)

    def close(self) -> None:
        self._shard_of.clear()
        self._stack.close()

    def _packed(self, name: str) -> bool:
        return self._gptq and name.endswith("_proj.weight")

    def _tensor(self, name: str) -> Any:
        return self._shard_of[name][1].get_tensor(name) if name in self._shard_of else None

    def _slice(self, name: str) -> Any:
        return self._shard_of[name][1].get_slice(name) if name in self._shard_of else None

    def _check(self, name: str, shape: tuple[int, ...]) -> str:
        if self._packed(name):
            check_projection(self._slice, name.removesuffix(".weight"), shape)
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


def _shards(folder: Path) -> list[Path]:
    """The files of the index, or all of the folder's; each directly in the folder."""
    if not (folder / _INDEX).is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{one_line(str(folder))}: no *.safetensors")
        return files
    table = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{one_line(str(folder / _INDEX))}: no weight_map")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            shown = one_line(str(folder / _INDEX))
            raise ModelError(f"{shown}: shard {one_line(name, 80)!r} is not in the folder")
    return [folder / name for name in names]
