"""exllamav2 over several GPUs, against a double of the package: a layer split, tensor parallel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the package torch is not installed")

from exllama_double import V2, FakeCuda  # noqa: E402

from llmprof.engines.base import LoadRequest  # noqa: E402
from llmprof.engines.exllama.v2 import ExLlamaV2Engine  # noqa: E402
from llmprof.errors import OutOfMemory, UsageError  # noqa: E402
from llmprof.models.presets import LlamaConfig  # noqa: E402
from llmprof.models.synth import SynthRequest, synthesise  # noqa: E402

SMALL = LlamaConfig(256, 512, 2, 4, 4, 64, 512, 1e-5, 10000.0, 2048)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models: EXL2 with a quantised head and with one in fp16, GPTQ."""
    made = {}
    for name, kind, bits, head in (
        ("exl2", "exl2", None, 6),
        ("fp16 head", "exl2", None, 16),
        ("gptq", "gptq", 4, 16),
    ):
        folder = tmp_path_factory.mktemp("model") / kind
        request = SynthRequest(SMALL, "exllamav2", kind, bits, head_bits=head)
        synthesise(request, folder, lambda what, share: None)
        made[name] = str(folder)
    return made


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> V2:
    double = V2()
    double.install(monkeypatch)
    return double


Load = Callable[..., ExLlamaV2Engine]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, package: V2, folders: dict[str, str]) -> Load:
    def loaded(
        model: str = "exl2", free_gib: tuple[float, ...] = (70, 60), batch: int = 1, **options: str
    ) -> ExLlamaV2Engine:
        FakeCuda(list(free_gib)).install(monkeypatch)
        engine = ExLlamaV2Engine()
        request = LoadRequest(
            folders[model], {"drive": "forward", **options}, batch=batch, max_positions=64
        )
        engine.load(request, lambda what, share: None)
        return engine

    return loaded


def test_tensor_parallel_gives_equal_shares_and_the_cache_of_it(load: Load, package: V2) -> None:
    engine = load(tp="2", cache="q4")
    ((split, expected),) = package.of("load_tp")
    assert split == [60.0, 60.0]  # the least that is free, so that both get the same heads
    assert expected["expect_cache_base"].__name__ == "ExLlamaV2Cache_Q4"
    assert package.of("cache_tp") == ["ExLlamaV2Cache_Q4"]
    info = engine.describe()
    assert (info.device, info.ranks, info.cuda_graph) == ("cuda:0,1", 2, False)
    alone = load().describe()
    assert (alone.device, alone.ranks) == ("cuda:0", 1)
    assert info.weight_bytes_per_step == alone.weight_bytes_per_step // 2
    assert info.projections is None
    assert "tensor parallel over 2 GPUs: sizes and bytes are one GPU's" in info.notes


def test_tensor_parallel_decodes_what_one_gpu_does(load: Load, package: V2) -> None:
    engine = load(tp="2")
    found = [engine.prefill([[3, 4, 5, 6]]), *(engine.decode_step() for _ in range(3))]
    # Ids on the host; the prompt goes without its last token first, and its mask is causal.
    shapes = [(shape, device, more) for shape, device, more in package.of("forward")]
    assert shapes[:2] == [
        ((1, 3), "cpu", {"preprocess_only": True}),
        ((1, 1), "cpu", {}),
    ]
    assert package.masks[0].tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert package.masks[1:] == [None] * 4
    assert found == [[10], [15], [21], [28]]


def test_a_layer_split_is_the_packages_own(load: Load, package: V2) -> None:
    engine = load(gpu_split="8/0/10", free_gib=(70, 60, 50))
    assert package.of("load") == [[8.0, 0.0, 10.0]]
    assert package.of("map") == [([8.0, 0.0, 10.0], False)]
    info = engine.describe()
    assert (info.device, info.ranks) == ("cuda:0,2", 1)
    assert info.weight_bytes_per_step == load().describe().weight_bytes_per_step


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp": "3"}, r"exllamav2:tp=3 takes GPU 0 and 1 and 2: this machine shows 2 CUDA GPUs"),
        ({"tp": "8"}, "4 KV heads, so at most 4 GPUs"),
        ({"gpu_split": "1/1/1"}, "this machine shows 2 CUDA GPUs"),
        ({"gpu_split": "1/x"}, "expected the GB that each GPU may take"),
        ({"gpu_split": "0/0"}, "expected the GB that each GPU may take"),
        ({"gpu_split": "nan/1"}, "expected the GB that each GPU may take"),
        ({"gpu_split": "20/20"}, "fit into the GPUs before GPU 1; give those fewer GB"),
        ({"gpu_split": "8/10", "tp": "2"}, "give one of them"),
        ({"tp": "2", "sync": "0"}, "the host waits in every step"),
        ({"tp": "2", "attention": "matmul"}, "choose flash or sdpa"),
        ({"tp": "2", "model": "gptq"}, "splits EXL2 matrices only, this model is gptq"),
        ({"tp": "2", "model": "fp16 head"}, "--head-bits 6"),
    ],
)
def test_what_cannot_be_split_is_said_before_anything_loads(
    load: Load, package: V2, options: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        load(options.pop("model", "exl2"), **options)
    assert not package.of("load_tp")


def test_a_package_without_tensor_parallelism(load: Load, package: V2) -> None:
    del package.Model.load_tp
    with pytest.raises(UsageError, match=r"has no tensor parallelism; install 0\.3\.2"):
        load(tp="2")


def test_too_little_memory_names_the_gpu(load: Load, package: V2) -> None:
    with pytest.raises(OutOfMemory, match=r"MiB on each of 2 GPUs, 0 MiB are free on cuda:1"):
        load(tp="2", free_gib=(70, 0.0001))
    with pytest.raises(OutOfMemory, match="need more than that"):
        load(gpu_split="1/2")


def test_other_engines_say_who_is_split() -> None:
    from llmprof.engines.exllama.v1 import ExLlamaEngine

    request = LoadRequest("nowhere", {"tp": "2"}, max_positions=8)
    with pytest.raises(UsageError, match="runs this engine on one GPU"):
        ExLlamaEngine().load(request, lambda what, share: None)
