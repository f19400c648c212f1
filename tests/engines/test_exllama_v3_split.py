"""exllamav3 over several GPUs, against a double of the package: a layer split, tensor parallel."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the package torch is not installed")

from exllama_double import V3, FakeCuda  # noqa: E402

from llmprof.engines.base import LoadRequest, RankedEngine  # noqa: E402
from llmprof.engines.exllama.v3 import ExLlamaV3Engine  # noqa: E402
from llmprof.errors import OutOfMemory, UsageError  # noqa: E402
from llmprof.models.presets import LlamaConfig  # noqa: E402
from llmprof.models.synth import SynthRequest, synthesise  # noqa: E402

SMALL = LlamaConfig(256, 512, 2, 4, 4, 64, 512, 1e-5, 10000.0, 2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("model") / "exl3"
    synthesise(SynthRequest(SMALL, "exllamav3", "exl3", 4), made, lambda what, share: None)
    return str(made)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> V3:
    double = V3()
    double.install(monkeypatch)
    return double


Load = Callable[..., ExLlamaV3Engine]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, package: V3, folder: str) -> Load:
    def loaded(free_gib: tuple[float, ...] = (70, 60), **options: str) -> ExLlamaV3Engine:
        FakeCuda(list(free_gib)).install(monkeypatch)
        engine = ExLlamaV3Engine()
        request = LoadRequest(folder, options, max_positions=300, trace="kernels")
        engine.load(request, lambda what, share: None)
        return engine

    return loaded


def test_tensor_parallel_is_ranks_that_are_traced(load: Load, package: V3) -> None:
    engine = load(tp="2", tp_backend="nccl")
    try:
        (how,) = package.of("load")
        assert how == {
            "tensor_p": True,
            "tp_backend": "nccl",
            "use_per_device": [60.0, 60.0],
            "max_chunk_size": 512,  # what the cache holds, in pages
            "max_output_size": 1,
        }
        assert package.of("warmup")  # before a rank waits for another
        info = engine.describe()
        assert (info.device, info.ranks) == ("cuda:0,1", 2)
        assert info.collective_bytes == {"AllReduce": 2 * SMALL.hidden_size}
        assert isinstance(engine, RankedEngine)
        ranks = engine.ranks()
        assert [(r.rank, r.device) for r in ranks] == [(0, "cuda:0"), (1, "cuda:1")]
        assert ranks[0].pid == os.getpid() != ranks[1].pid
        engine.start_rank_traces(1)
        assert engine.stop_rank_traces(1) == {1: "kernels of this rank were not recorded"}
        assert len(package.of("drain")) == 2
    finally:
        engine.close()


def test_one_gpu_and_a_layer_split_are_one_process(load: Load, package: V3) -> None:
    alone = load()
    assert [(r.rank, r.pid) for r in alone.ranks()] == [(0, os.getpid())]
    assert alone.stop_rank_traces(1) == {}
    engine = load(gpu_split="8/10")
    assert package.of("load")[1] == {"use_per_device": [8.0, 10.0], "max_chunk_size": 512}
    info = engine.describe()
    assert (info.device, info.ranks, len(engine.ranks())) == ("cuda:0,1", 1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp": "3"}, "this machine shows 2 CUDA GPUs"),
        ({"tp": "2", "drive": "forward"}, "on several GPUs exllamav3 has drive=generator only"),
        ({"gpu_split": "8/8", "drive": "forward"}, "drive=generator only"),
        ({"tp": "2", "tp_backend": "gloo"}, "choose from native, nccl"),
        ({"gpu_split": "20/20"}, "all layers fit into the GPUs before GPU 1"),
    ],
)
def test_what_cannot_be_split_is_said(load: Load, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(**options)


def test_too_small_a_split(load: Load) -> None:
    with pytest.raises(OutOfMemory, match="weights and KV cache need more than that"):
        load(gpu_split="2/3")


def test_a_package_without_tensor_parallelism(load: Load, package: V3) -> None:
    package.Model.load_gen = lambda self, device=None: None
    with pytest.raises(UsageError, match=r"has no tensor parallelism; install 1\.6\.5"):
        load(tp="2")
