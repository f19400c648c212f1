"""Engine specs, config files, labels, seeded prompts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmprof.config import Config, EngineSpec, labels, load_config, parse_engine
from llmprof.errors import UsageError
from llmprof.session.passes.schedule import Turns
from llmprof.workload import Workload, read_ids, seeded_ids


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("torch:model=/a,b/c.gguf", {"model": "/a,b/c.gguf"}),
        ("torch:model=/a,b/c.gguf,threads=2", {"model": "/a,b/c.gguf", "threads": "2"}),
        ("torch:label=x, y,model=m,", {"label": "x, y", "model": "m"}),
        ("torch:model=/q=1,2/m", {"model": "/q=1,2/m"}),
        ("torch:threads=2,,dtype=fp16", {"threads": "2", "dtype": "fp16"}),
    ],
)
def test_a_comma_in_a_value(text: str, options: dict[str, str]) -> None:
    assert parse_engine(text, Config()).options == options


def test_engine_spec_with_interpreter_and_options() -> None:
    spec = parse_engine(f"mlc@{sys.executable}:lib=/a/b.so,drive=vm", Config())
    assert spec == EngineSpec("mlc", sys.executable, {"lib": "/a/b.so", "drive": "vm"})


def test_the_command_line_wins_over_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[engines.torch]\npython = "{sys.executable}"\n'
        'options = { dtype = "bf16", threads = 4, cuda_graph = true }\n[run]\nrounds = 3\n'
    )
    config = load_config([file])
    spec = parse_engine("torch:threads=1", config)
    assert spec.options == {"dtype": "bf16", "threads": "1", "cuda_graph": "1"}
    assert config.run == {"rounds": 3}


@pytest.mark.parametrize(
    "text",
    [
        "[engines.torch]\ncolour = 1",
        "[surprise]\n",
        "[run]\nrounds = 'x'",
        "not toml",
        "[run]\nx=1",
    ],
)
def test_a_bad_config_file_is_one_line_with_its_path(tmp_path: Path, text: str) -> None:
    file = tmp_path / "llmprof.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"llmprof\.toml"):
        load_config([file])


@pytest.mark.parametrize("text", ["", "a b", "torch:dtype", "torch:=1", "torch@/no/such/python"])
def test_a_malformed_engine_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_engine(text, Config())


def test_labels_are_unique_and_short() -> None:
    python = sys.executable
    specs = [
        EngineSpec("torch", python),
        EngineSpec("torch", python, {"cuda_graph": "1"}),
        EngineSpec("torch", python),
        EngineSpec("mlc", python, {"lib": "/a/very/long/path/to/a/library.so"}),
        EngineSpec("mlc", python, {"label": "mine"}),
    ]
    assert labels(specs) == ["torch", "torch:cuda_graph=1", "torch#2", "mlc", "mine"]


def test_seeded_ids_are_the_same_everywhere() -> None:
    rows = seeded_ids(4, 32000, 2, seed=0)
    assert rows == seeded_ids(4, 32000, 2, seed=0)
    assert rows != seeded_ids(4, 32000, 2, seed=1)
    assert rows == ((2831, 6757, 25605, 29352), (22084, 7162, 22166, 30347))


def test_the_hash_holds_what_a_fair_comparison_needs() -> None:
    one = Workload(((1, 2, 3),), decode_len=8, rounds=2)
    assert one.hash == Workload(((1, 2, 3),), decode_len=8, rounds=9).hash
    assert one.hash != Workload(((1, 2, 4),), decode_len=8).hash
    assert one.hash != Workload(((1, 2, 3),), decode_len=9).hash
    assert Workload.from_dict(one.to_dict()) == one


@pytest.mark.parametrize("text", ["[1, 2, 3]", "1 2 3", "1,2,3\n"])
def test_ids_from_a_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ids"
    file.write_text(text)
    assert read_ids(file) == (1, 2, 3)


@pytest.mark.parametrize("text", ["", "[]", "1 x", "-1 2", "\xff"])
def test_bad_ids_are_a_usage_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ids"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="--prompt-ids"):
        read_ids(file)


def test_every_engine_has_one_turn_a_round_in_a_shuffled_order() -> None:
    turns = Turns(2, seed=0)
    orders = [turns.next() for _ in range(16)]
    assert all(sorted(order) == [0, 1] for order in orders)
    assert {order[0] for order in orders} == {0, 1}
    again = Turns(2, seed=0)
    assert orders == [again.next() for _ in range(16)]
