"""The folder that MLC LLM's engine is given: that of the weights, or one of links to its files with
what the engine insists on beside them. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmprof.errors import ModelError
from llmprof.models.locate import CACHE_FILES, MLC_CONFIG, read_json
from llmprof.models.mlc.chat import MAX_STAND_IN, chat_config, stand_in_tokenizer
from llmprof.models.mlc.metadata import MlcMetadata
from llmprof.models.new_folder import write_json
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line

_TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("merges.txt", "vocab.json", "added_tokens.json"),
    ("tokenizer_model",),
)
"""``Tokenizer::FromPath`` in cpp/tokenizers/tokenizers.cc takes the first that is whole."""


@contextmanager
def as_the_engine_reads(
    folder: Path, library: MlcMetadata, vocab_size: int
) -> Iterator[tuple[Path, list[str]]]:
    """A folder with a config, a tokenizer and ``tensor-cache.json`` for as long as the engine
    loads; it reads nothing later. And what was made, for the notes.

    Raises:
        ModelError: the config is of another vocabulary, or too large a one for a stand-in.
    """
    config = folder / MLC_CONFIG
    if config.is_file():
        _check_config(config, vocab_size)
    made = {}
    if not config.is_file():
        made[MLC_CONFIG] = chat_config(library, None, vocab_size)
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        if vocab_size > MAX_STAND_IN:
            raise ModelError(
                f"{one_line(str(folder))}: no tokenizer, which MLC LLM's engine loads; copy"
                " tokenizer.json there, or use drive=vm"
            )
        made["tokenizer.json"] = stand_in_tokenizer(vocab_size)
    current, older = CACHE_FILES
    renamed = not (folder / current).is_file()
    if not made and not renamed:
        yield folder, []
        return
    with OwnFolder("llmprof-mlc-") as passing:
        for file in folder.resolve().iterdir():
            if file.is_file() and file.name not in made:
                (passing / file.name).symlink_to(file)
        for file_name, document in made.items():
            write_json(passing / file_name, document)
        if renamed:
            (passing / current).symlink_to(folder.resolve() / older)
        notes = [f"stand-in for a missing {file_name}" for file_name in made]
        notes += [f"{older} shown to the engine as {current}"] if renamed else []
        yield passing, notes


def _check_config(config: Path, vocab_size: int) -> None:
    told = read_json(config).get("vocab_size")
    if told != vocab_size:
        # The engine takes the shapes of the parameters and of the logits from it.
        raise ModelError(
            f"{one_line(str(config))}: vocab_size is {one_line(repr(told), 40)}, the weights have"
            f" {vocab_size}; write it anew with: mlc_llm gen_config, or use drive=vm"
        )
