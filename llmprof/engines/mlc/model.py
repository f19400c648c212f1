"""Which library and which weights an MLC engine was asked for. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llmprof.errors import ModelError, UsageError
from llmprof.models.locate import RANDOM, resolve
from llmprof.models.mlc.metadata import MlcMetadata
from llmprof.models.mlc.weights import MlcWeights, open_weights
from llmprof.models.presets import PRESETS, LlamaConfig
from llmprof.plaintext import one_line


@dataclass(frozen=True)
class MlcModel:
    """``weights`` is ``None`` for random ones, made on the device."""

    name: str
    library: str
    folder: Path | None
    weights: MlcWeights | None
    preset: LlamaConfig | None
    vocab: int | None
    """What the user, the folder or the preset says."""
    vocab_size: int = 0
    """After ``fitted``."""

    @property
    def random(self) -> bool:
        return self.weights is None or self.weights.random

    @property
    def made_on_device(self) -> bool:
        """Random weights without files."""
        return self.weights is None

    @property
    def weights_id(self) -> str | None:
        return None if self.weights is None else self.weights.weights_id

    def fitted(self, library: MlcMetadata, shown: str) -> MlcModel:
        """The same with its vocabulary known, once the weights are known to fit the library.

        Raises:
            ModelError: they do not.
            UsageError: nobody says how large the vocabulary is.
        """
        if self.preset is not None:
            library.check_shape(self.preset, self.name, shown)
        vocab = self._vocabulary(library)
        if vocab is None:
            raise UsageError(
                f"{shown} leaves the size of the vocabulary open; say it with mlc:vocab=N"
            )
        if self.weights is not None:
            self.weights.check_fits(library, vocab, shown)
        return replace(self, vocab_size=vocab)

    def _vocabulary(self, library: MlcMetadata) -> int | None:
        if self.weights is not None:
            for parameter in library.parameters:
                stored = self.weights.stored.get(parameter.name)
                if stored is None or len(stored.shape) != len(parameter.shape):
                    continue
                for size, wanted in zip(stored.shape, parameter.shape, strict=True):
                    if isinstance(wanted, str):
                        return size
        return self.vocab or library.active_vocab_size


def find_model(text: str, lib: str, random: bool, vocab: int | None) -> MlcModel:
    """From the model's name and the options to files.

    Args:
        text: an MLC folder, a preset (random weights in its shape), or ``random``.
        lib: the library, or empty: the only one beside the weights.
        random: do not read weights.

    Raises:
        ModelError: not a model of MLC, or no library is found.
    """
    if text == RANDOM:
        return MlcModel(RANDOM, _given(lib), None, None, None, vocab)
    ref = resolve(text)
    if ref.kind == "preset":
        shape = PRESETS[str(ref.preset)]
        return MlcModel(ref.name, _given(lib), None, None, shape, vocab or shape.vocab_size)
    if ref.kind != "mlc" or ref.path is None:
        if random:
            return MlcModel(RANDOM, _given(lib), None, None, None, vocab)
        raise ModelError(
            f"mlc loads a folder of MLC weights; {one_line(ref.name)} is none: convert it with:"
            " llmprof model prepare --engine mlc, or use mlc:lib=FILE.so,weights=random"
        )
    folder = Path(ref.path)
    weights = None if random else open_weights(folder)
    library = lib or _beside(folder)
    return MlcModel(ref.name, library, folder, weights, None, vocab or ref.vocab_size)


def _given(lib: str) -> str:
    if not lib:
        raise UsageError("mlc: name the compiled library: --engine mlc:lib=FILE.so")
    return lib


def _beside(folder: Path) -> str:
    """The only library in the weight folder, or in ``../libs`` under the folder's name."""
    stem = folder.resolve().name.removesuffix("-MLC")
    libs = folder.resolve().parent / "libs"
    found = sorted(folder.glob("*.so")) or sorted(
        file for file in libs.glob("*.so") if file.name.startswith(f"{stem}-")
    )
    if len(found) == 1:
        return str(found[0])
    shown = one_line(str(folder))
    several = f"{len(found)} libraries" if found else "no library"
    raise ModelError(f"{shown}: {several} beside the weights; name one: --engine mlc:lib=FILE.so")
