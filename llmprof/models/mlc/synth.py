"""An MLC weight folder with random parameters, in the shapes of a library. Uses numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from llmprof.errors import UsageError
from llmprof.models.locate import MLC_CONFIG
from llmprof.models.mlc.chat import MAX_STAND_IN, chat_config, stand_in_tokenizer
from llmprof.models.mlc.metadata import MlcMetadata
from llmprof.models.mlc.random import RandomParameters
from llmprof.models.mlc.writer import PlannedParameter, write_weights
from llmprof.models.new_folder import new_folder, write_json
from llmprof.models.presets import LlamaConfig
from llmprof.models.tokenizer import STAND_IN

_SPARE = 16 << 20
"""Room for the tokenizer and the JSON files."""


def synthesise(
    library: MlcMetadata,
    shape: LlamaConfig | None,
    vocab_size: int,
    seed: int,
    target: Path,
    told: Callable[[str, float], None],
) -> int:
    """Write the folder; the bytes of its weights.

    Args:
        shape: of the preset; fills ``model_config``, which MLC LLM's engine reads beside the
            library's metadata.

    Raises:
        UsageError: ``target`` exists, the disk is too small, several GPUs.
    """
    if library.tensor_parallel_shards > 1 or library.pipeline_parallel_stages > 1:
        raise UsageError(
            "the library is for several GPUs; its metadata has the shapes of one GPU's part, not"
            " those of the weight files"
        )
    source = RandomParameters(library, vocab_size, seed)
    total = library.parameter_bytes(vocab_size)
    with new_folder(target, total + _SPARE) as folder:
        write_weights(
            folder,
            (
                PlannedParameter(p.name, p.sizes(vocab_size), p.dtype, partial(source.chunks, p))
                for p in library.parameters
            ),
            {"random": True, "seed": seed},
            lambda written: told("writing weights", written / total),
        )
        write_json(folder / MLC_CONFIG, chat_config(library, shape, vocab_size))
        if vocab_size <= MAX_STAND_IN:
            write_json(folder / "tokenizer.json", stand_in_tokenizer(vocab_size))
            (folder / STAND_IN).touch()
    return total
