"""A model folder is judged by its headers: one clear line for each thing that can be wrong."""

from __future__ import annotations

import json
import struct

import pytest

from llmprof.errors import ModelError
from llmprof.models.exllama.files import inspect_folder
from llmprof.models.exllama.shapes import best_group_size, misfit, v1_rope_covers
from llmprof.models.presets import PRESETS, LlamaConfig
from llmprof.models.safetensors.header import read_tensor_table
from llmprof.models.synth import SynthRequest, synthesise

SMALL = LlamaConfig(128, 256, 1, 4, 4, 32, 64, 1e-5, 10000.0, 512)
SMALL_V1 = LlamaConfig(256, 256, 1, 2, 2, 128, 64, 1e-5, 10000.0, 512)
SMOLLM2 = LlamaConfig(576, 1536, 30, 9, 3, 64, 49152, 1e-5, 100000.0, 8192, True)


def folder(tmp_path, engine="exllamav2", kind="gptq", config=SMALL, **more):
    target = tmp_path / "model"
    synthesise(SynthRequest(config, engine, kind, **more), target, lambda what, share: None)
    return target


def edit_header(target, change) -> None:
    """Rewrite the header in place; ``change`` may drop, rename or reshape tensors."""
    file = target / "model.safetensors"
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def edit_config(target, **values) -> None:
    file = target / "config.json"
    data = json.loads(file.read_text())
    data.update(values)
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def refusal(target, engine="exllamav2") -> str:
    with pytest.raises(ModelError) as caught:
        inspect_folder(str(target), engine)
    text = str(caught.value)
    assert "\n" not in text and "\x1b" not in text
    return text


@pytest.mark.parametrize(
    ("engine", "kind", "config", "bits"),
    [
        ("exllama", "gptq", SMALL_V1, 4),
        ("exllamav2", "gptq", SMALL, 4),
        ("exllamav2", "exl2", SMALL, None),
        ("exllamav2", "fp16", SMALL, 16),
        ("exllamav3", "exl3", SMALL, 3),
        ("exllamav3", "fp16", SMALL, 16),
    ],
)
def test_what_synth_makes_is_accepted(tmp_path, engine, kind, config, bits) -> None:
    found = inspect_folder(str(folder(tmp_path, engine, kind, config, bits=bits)), engine)
    assert found.format == kind
    assert found.config == config
    assert found.weights_id is None
    assert found.format_text.startswith("random")
    size = (found.folder / "model.safetensors").stat().st_size
    assert found.step_bytes < found.file_bytes < size
    assert found.step_bytes == found.file_bytes - found.embedding_bytes


def test_bits_per_weight_is_that_of_the_file(tmp_path) -> None:
    config = PRESETS["tiny-128"]
    found = inspect_folder(
        str(folder(tmp_path, "exllamav3", "exl3", config, head_bits=6)), "exllamav3"
    )
    assert 4.0 < found.bits_per_weight < 4.3


def test_projections_add_up_to_what_a_step_reads(tmp_path) -> None:
    for kind in ("gptq", "exl2", "fp16"):
        found = inspect_folder(str(folder(tmp_path / kind, kind=kind)), "exllamav2")
        sizes = {name: size for name, (_, _, size) in found.projections.items()}
        layers = SMALL.num_hidden_layers * sum(v for n, v in sizes.items() if n != "lm_head")
        norms = 2 * SMALL.hidden_size * (2 * SMALL.num_hidden_layers + 1)
        assert layers + sizes["lm_head"] + norms == found.step_bytes


def test_a_format_that_the_engine_does_not_load(tmp_path) -> None:
    target = folder(tmp_path)
    assert "exllamav3 does not load gptq" in refusal(target, "exllamav3")


def test_a_missing_tensor(tmp_path) -> None:
    target = folder(tmp_path)
    edit_header(target, lambda h: h.pop("model.layers.0.mlp.up_proj.scales"))
    assert "model.layers.0.mlp.up_proj.scales is missing" in refusal(target)


def test_a_wrong_shape(tmp_path) -> None:
    target = folder(tmp_path)

    def flatten(header) -> None:
        entry = header["model.layers.0.self_attn.k_proj.qweight"]
        entry["shape"] = entry["shape"][::-1]

    edit_header(target, flatten)
    text = refusal(target)
    assert "k_proj.qweight has shape [128, 16], config.json says [16, 128]" in text


def test_a_wrong_type(tmp_path) -> None:
    target = folder(tmp_path)

    def retype(header) -> None:
        header["model.layers.0.self_attn.k_proj.qweight"]["dtype"] = "F32"

    edit_header(target, retype)
    assert "k_proj.qweight is F32, expected I32" in refusal(target)


def test_a_truncated_file(tmp_path) -> None:
    target = folder(tmp_path)
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "truncated" in refusal(target)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"\xff" * 64, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]"],
)
def test_a_file_that_is_no_safetensors(tmp_path, content) -> None:
    target = folder(tmp_path)
    (target / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refusal(target)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"dtype": "I32"},
        {"dtype": "I32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [1], "data_offsets": [True, 4]},
        {"dtype": "\x1b[2J", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": 3, "data_offsets": [0, 4]},
    ],
)
def test_an_odd_entry(tmp_path, entry) -> None:
    target = folder(tmp_path)
    edit_header(target, lambda h: h.update({"bad\x1b[2J": entry}))
    refusal(target)


def test_v1_loads_one_file_only(tmp_path) -> None:
    target = folder(tmp_path, "exllama", "gptq", SMALL_V1)
    (target / "other.safetensors").write_bytes((target / "model.safetensors").read_bytes())
    assert "2 safetensors files" in refusal(target, "exllama")


def test_v1_needs_token_ids_in_the_config(tmp_path) -> None:
    target = folder(tmp_path, "exllama", "gptq", SMALL_V1)
    edit_config(target, pad_token_id=None)
    assert "pad_token_id" in refusal(target, "exllama")


def test_act_order_is_seen_and_a_bad_group_refused(tmp_path) -> None:
    target = folder(tmp_path, config=SMALL)
    key = "model.layers.0.mlp.down_proj"

    def with_groups(groups: list[int]) -> None:
        file = target / "model.safetensors"
        raw = file.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
        header.pop(f"{key}.g_idx", None)
        end = max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")
        data = raw[8 + length : 8 + length + end] + struct.pack(f"<{len(groups)}i", *groups)
        header[f"{key}.g_idx"] = {
            "dtype": "I32",
            "shape": [len(groups)],
            "data_offsets": [end, end + 4 * len(groups)],
        }
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)

    with_groups([0] * 256)
    assert not inspect_folder(str(target), "exllamav2").act_order
    with_groups([i % 2 for i in range(256)])
    found = inspect_folder(str(target), "exllamav2")
    assert found.act_order
    assert any("act-order" in note for note in found.notes)
    with_groups([9] * 256)
    assert "a group that is not there" in refusal(target)


def test_another_architecture(tmp_path) -> None:
    target = folder(tmp_path)
    edit_config(target, architectures=["Qwen3ForCausalLM"])
    assert "LlamaForCausalLM" in refusal(target)


def test_no_folder_says_how_to_make_one(tmp_path) -> None:
    assert "llmprof model synth" in refusal(tmp_path / "nothing")


def test_offsets_are_checked_against_the_file(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    header = {"a": {"dtype": "F16", "shape": [4], "data_offsets": [10**9, 10**9 + 8]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    with pytest.raises(ModelError, match="truncated"):
        read_tensor_table(path)


@pytest.mark.parametrize(
    ("engine", "kind", "group_size", "words"),
    [
        ("exllama", "gptq", 128, "group size 64 fits"),
        ("exllama", "gptq", 64, None),
        ("exllamav2", "gptq", 64, None),
        ("exllamav2", "exl2", 128, None),
        ("exllamav2", "fp16", 128, None),
        ("exllamav2", "gptq", 96, "32, 64, 128"),
        ("exllamav2", "exl3", 128, "does not load exl3"),
        ("exllamav3", "exl3", 128, "hidden_size in multiples of 128"),
        ("exllamav3", "fp16", 128, "hidden_size in multiples of 128"),
    ],
)
def test_where_smollm2_fits(engine, kind, group_size, words) -> None:
    reason = misfit(SMOLLM2, engine, kind, group_size)
    assert (reason is None) if words is None else (words in str(reason))
    assert best_group_size(SMOLLM2) == 64


@pytest.mark.parametrize("preset", ["llama2-7b", "llama2-13b", "llama2-70b", "llama3-8b"])
def test_the_large_presets_fit_everywhere(preset) -> None:
    config = PRESETS[preset]
    for engine, kind in [("exllama", "gptq"), ("exllamav2", "exl2"), ("exllamav3", "exl3")]:
        assert misfit(config, engine, kind) is None


def test_v1_rotary_kernel_leaves_small_heads_alone() -> None:
    assert v1_rope_covers(128, half2=True)
    assert not v1_rope_covers(64, half2=True)
    assert v1_rope_covers(64, half2=False)
    assert not v1_rope_covers(32, half2=False)
    assert "heads of 32" in str(misfit(PRESETS["tiny"], "exllama", "gptq"))
