"""MLC LLM's own engine, a step at a time: ``SyncMLCEngine`` of mlc_llm/serve/sync_engine.py.

One ``step()`` runs one action of its scheduler: a prefill while requests wait, else one decode step
for all running sequences (``EngineImpl::Step`` in cpp/serve/engine.cc). The callback hears the new
tokens before ``step()`` returns. A sequence that is preempted for lack of KV memory gets no token
in that step and is silently prefilled again later; so a step without a token for every sequence is
an error here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from llmprof.engines.mlc.opening import Opening
from llmprof.engines.mlc.serve_folder import as_the_engine_reads
from llmprof.errors import EngineFailure, MissingPackage, UsageError
from llmprof.plaintext import one_line


@dataclass(frozen=True)
class Mlc:
    """What is used of the package."""

    engine: Any
    config: Any
    token_data: Any
    generation: Any
    debug: Any
    version: str


def import_mlc() -> Mlc:
    """The package with its library.

    Raises:
        MissingPackage: one of its parts does not import.
    """
    try:
        package = import_module("mlc_llm")
        return Mlc(
            import_module("mlc_llm.serve.sync_engine").SyncMLCEngine,
            import_module("mlc_llm.serve.config").EngineConfig,
            import_module("mlc_llm.serve.data").TokenData,
            import_module("mlc_llm.protocol.generation_config").GenerationConfig,
            import_module("mlc_llm.protocol.debug_protocol").DebugConfig,
            str(getattr(package, "__version__", "unknown")),
        )
    except Exception as why:  # noqa: BLE001 - no library, another TVM, a missing dependency
        raise MissingPackage(
            f"mlc_llm does not import: {type(why).__name__}: {one_line(str(why), 160)}"
        ) from None


def open_serve(opening: Opening) -> tuple[ServeDrive, dict[str, Any]]:
    """The drive, and what only it knows for ``EngineInfo``.

    Raises:
        ModelError: the folder's config is not that of the weights.
        EngineFailure: another MLC LLM than the one this is written for.
    """
    folder = opening.model.folder
    assert folder is not None  # weights made on the device take the vm drive
    mlc = import_mlc()
    metadata, request = opening.metadata, opening.request
    batch = request.batch
    mode = "interactive" if batch == 1 else "server"
    # That of the library; mlc-chat-config.json may say less. Not a word about it for an RNN.
    longest = metadata.context_window_size if metadata.kv_layers else None
    drive = ServeDrive(mlc, request.max_positions, batch)
    opening.progress("loading weights", None)
    with as_the_engine_reads(folder, metadata, opening.vocab_size) as (read, stand_ins):
        try:
            settings = mlc.config(
                max_num_sequence=batch,
                max_total_sequence_length=opening.kv_tokens,
                max_single_sequence_length=longest,
                # A cached prefix would make the next round's prefill a look-up.
                prefix_cache_mode="disable",
                # Not hybrid: sequences that are through would decode along while others prefill.
                prefill_mode="chunked",
                speculative_mode="disable",
                verbose=False,
            )
            drive.engine = mlc.engine(
                str(read),
                opening.device,
                model_lib=str(opening.library.path),
                mode=mode,
                engine_config=settings,
                request_stream_callback=drive.heard,
            )
        except TypeError as why:  # an argument that this version does not know
            raise EngineFailure(
                f"mlc: MLC LLM {mlc.version} has another interface than that of July 2026"
                f" ({one_line(str(why), 160)}); use drive=vm, or a current MLC LLM"
            ) from None
    from llmprof.engines.mlc.vm_drive import has_graphs

    machine = import_module("tvm.runtime.vm").VirtualMachine(
        opening.module, opening.tvm.device("cpu", 0)
    )
    notes = [
        f"SyncMLCEngine, mode {mode}, greedy by temperature 0",
        f"KV cache: {opening.kv_tokens} positions, prefix cache off, chunked prefill",
        *stand_ins,
    ]
    return drive, {
        "cuda_graph": has_graphs(machine),
        "versions": {"mlc_llm": mlc.version},
        "notes": notes,
    }


class ServeDrive:
    """Requests ``0`` … ``batch - 1``, decoded together.

    Args:
        positions: of a sequence, at most.
    """

    def __init__(self, mlc: Mlc, positions: int, batch: int) -> None:
        self.engine: Any = None
        self._mlc = mlc
        self._positions = positions
        self._waiting: list[deque[int]] = [deque() for _ in range(batch)]
        self._ended = ""

    def heard(self, outputs: Sequence[Any]) -> None:
        """``request_stream_callback``: a list of ``RequestStreamOutput``.

        Must not raise: it is called from C++.
        """
        for output in outputs:
            name, streams = output.unpack()
            for stream in streams:
                if stream.request_final_usage_json_str is not None:
                    continue
                self._waiting[int(name)].extend(stream.delta_token_ids)
                if stream.finish_reason is not None:
                    self._ended = f"request {name} ended with {stream.finish_reason!r}"

    def prefill(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """Add a request for each row; step until each has its first token."""
        for number, row in enumerate(rows):
            self.engine.add_request(
                self.engine.create_request(
                    str(number), self._mlc.token_data(list(row)), self._generation(len(row))
                )
            )
        waiting = self._waiting
        step = self.engine.step
        # A chunk a step at the least; with too little KV memory the running ones decode instead.
        for _ in range(2 + sum(len(row) for row in rows)):
            step()
            if all(waiting):
                break
            if any(len(tokens) > 1 for tokens in waiting) or self._ended:
                break
        return self._row()

    def step(self) -> list[int]:
        self.engine.step()
        return self._row()

    def reset(self) -> None:
        """Abort what runs, empty the KV cache."""
        self.engine.reset()
        for tokens in self._waiting:
            tokens.clear()
        self._ended = ""

    def close(self) -> None:
        self.engine = None

    def _row(self) -> list[int]:
        """Exactly one token of every sequence. A request may end with the last of them: at the
        full context MLC ends it by itself."""
        row = []
        for number, tokens in enumerate(self._waiting):
            if len(tokens) != 1:
                raise self._broken(number, len(tokens))
            row.append(tokens.popleft())
        return row

    def _broken(self, number: int, count: int) -> Exception:
        if self._ended:
            return RuntimeError(f"mlc: {self._ended} before the forced length")
        batch = len(self._waiting)
        if batch > 1:
            what = (
                f"preempted sequence {number} of {batch}"
                if not count
                else f"let a sequence of {batch} wait while others decoded"
            )
            return UsageError(
                f"mlc: MLC LLM {what}: the KV cache is too small for the batch; give it more with"
                " mlc:kv_tokens=N, or leave that option out"
            )
        return RuntimeError(f"mlc: {count} tokens in a step, expected one")

    def _generation(self, prompt_len: int) -> Any:
        """Greedy, no penalties, no end token; one token more than is ever asked for, since a
        request that ends costs time inside its last step."""
        return self._mlc.generation(
            temperature=0.0,
            top_p=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            repetition_penalty=1.0,
            max_tokens=self._positions - prompt_len + 2,
            stop_token_ids=[],
            debug_config=self._mlc.debug(ignore_eos=True),
        )
