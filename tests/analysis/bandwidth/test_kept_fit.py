"""The fit that a run file keeps: the same as fitting again, and never trusted blindly."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from dram_factory import dram_run, strobe

from llmprof.analysis.bandwidth import kept
from llmprof.analysis.bandwidth.kernels import KernelBandwidth, kernel_bandwidth
from llmprof.analysis.device.naming.categories import load_rules, shipped_rules
from llmprof.records import Unavailable
from llmprof.runfile.reader import RunFileReader


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KernelBandwidth, str]:
    """A run file without a kept fit, its fit, and the document of that."""
    path = tmp_path_factory.mktemp("kept") / "run.sqlite"
    dram_run(path, strobe(steps=100))
    with RunFileReader(path) as reader:
        data = reader.run_data()
        found = kernel_bandwidth(reader, data, data.engines[0], shipped_rules())
        assert isinstance(found, KernelBandwidth)
        return path, found, kept.document(data, data.engines[0], found)


def with_row(source: Path, target: Path, version: Any, document: Any) -> Path:
    target.write_bytes(source.read_bytes())
    with sqlite3.connect(target) as db:
        db.execute("INSERT INTO LLMPROF_DRAM_FIT VALUES (0, ?, ?)", (version, document))
    db.close()
    return target


def stored(path: Path) -> KernelBandwidth | Unavailable | None:
    with RunFileReader(path) as reader:
        data = reader.run_data()
        return kept.kept_bandwidth(reader, data, data.engines[0])


def test_a_kept_fit_is_what_was_fitted(
    fitted: tuple[Path, KernelBandwidth, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found, text = fitted
    assert stored(path) is None
    whole = with_row(path, tmp_path / "kept.sqlite", kept.VERSION, text)
    again = stored(whole)
    assert isinstance(again, KernelBandwidth)
    assert asdict(again) == asdict(found)

    def fit_again(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(kept, "kernel_bandwidth", fit_again)
    with RunFileReader(whole) as reader:
        data = reader.run_data()
        got = kept.measured_bandwidth(reader, data, data.engines[0], shipped_rules())
        assert isinstance(got, KernelBandwidth)
        assert asdict(got) == asdict(found)
        # Whoever opens it may have rules of their own.
        mine = tmp_path / "rules.toml"
        mine.write_text('[[rule]]\ncategory = "norm"\nmatch = "even"\n', encoding="utf-8")
        rules = load_rules(mine)
        got = kept.measured_bandwidth(reader, data, data.engines[0], rules)
    assert isinstance(got, KernelBandwidth)
    assert {k.category for k in got.kernels if "even" in k.name} == {"norm"}


def test_a_reason_is_kept(fitted: tuple[Path, KernelBandwidth, str], tmp_path: Path) -> None:
    path, _, _ = fitted
    why = Unavailable("the samples do not follow the kernels")
    with RunFileReader(path) as reader:
        data = reader.run_data()
        text = kept.document(data, data.engines[0], why)
    assert stored(with_row(path, tmp_path / "why.sqlite", kept.VERSION, text)) == why


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(found: dict[str, Any]) -> None:
        found[key] = value

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        change("kernels", {}),
        change("kernels", [[]]),
        change("r2", "0.99"),
        change("r2", float("nan")),
        change("r2", True),
        change("steps", 1.5),
        change("more", 1),
        change("headroom", None),
        change("ceiling_gb_s", {"reason": 5}),
        lambda found: found["kernels"][0].pop("note"),
        lambda found: found["kernels"][0].update(grid=[1, 2]),
        lambda found: found["kernels"][0].update(profile_gb_s=[None]),
    ],
)
def test_a_damaged_document_is_fitted_again(
    fitted: tuple[Path, KernelBandwidth, str],
    tmp_path: Path,
    damage: Callable[[dict[str, Any]], Any],
) -> None:
    path, _, text = fitted
    document = json.loads(text)
    damage(document["found"])
    row = with_row(path, tmp_path / "run.sqlite", kept.VERSION, json.dumps(document))
    assert stored(row) is None


def test_another_version_other_rounds_and_no_json_are_fitted_again(
    fitted: tuple[Path, KernelBandwidth, str], tmp_path: Path
) -> None:
    path, _, text = fitted
    (number, first, last, steps), *_ = json.loads(text)["rounds"]
    others = [
        json.dumps({**json.loads(text), "rounds": [row]})
        for row in (
            [77, first, last, steps], [number, first, last - 1, steps], [number, first, last], 77
        )
    ]  # fmt: skip
    texts = (*others, text[:-9], "[" * 100_000, b"\xff", "null")
    rows = [(kept.VERSION + 1, text), *((kept.VERSION, t) for t in texts)]
    for number, (version, document) in enumerate(rows):
        assert stored(with_row(path, tmp_path / f"{number}.sqlite", version, document)) is None


def test_control_characters_do_not_come_through(
    fitted: tuple[Path, KernelBandwidth, str], tmp_path: Path
) -> None:
    path, _, text = fitted
    document = json.loads(text)
    document["found"]["kernels"][0].update(short_name="a\x1b[2Jb", note="x\ny")
    found = stored(with_row(path, tmp_path / "run.sqlite", kept.VERSION, json.dumps(document)))
    assert isinstance(found, KernelBandwidth)
    assert found.kernels[0].short_name.isprintable()
    assert found.kernels[0].note.isprintable()
