"""What a grid is, which points it has, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.errors import UsageError
from llmprof.sweep.fields import canonical, short, values_of
from llmprof.sweep.forecast import Place, forecasts, shared
from llmprof.sweep.grid import Grid, make, read_toml


def test_every_value_meets_every_other_and_repeats_come_last() -> None:
    grid = make(["torch"], {"context": "128,1k", "batch": [1, 2]}, 2)
    points = grid.points()
    assert [(p.fields["context"], p.fields["batch"], p.repeat) for p in points] == [
        (c, b, r) for r in (0, 1) for c in ("128", "1024") for b in ("1", "2")
    ]
    assert grid.axes == ("context", "batch")
    assert points[3].arguments() == [
        "--engine", "torch", "--prompt-len", "1024", "--batch", "2",
    ]  # fmt: skip


def test_a_point_keeps_its_id_when_the_grid_grows() -> None:
    small = make(["torch"], {"context": "128", "batch": "1"}).points()
    large = make(["torch"], {"batch": "2,1", "context": "64,128"}).points()
    assert {p.point_id for p in small} <= {p.point_id for p in large}
    assert len({p.point_id for p in large}) == 4
    # Of this content, on every machine and by every version that reads this format.
    assert small[0].point_id == "68866ff530d4"


def test_options_of_one_engine_or_of_all_are_fields() -> None:
    grid = make(["torch:device=cpu", "llamacpp"], {"torch.dtype": "fp16,fp32", "*.threads": 2})
    first, second = grid.points()
    assert first.engines == ("torch:device=cpu,dtype=fp16,threads=2", "llamacpp:threads=2")
    assert second.engines[0] == "torch:device=cpu,dtype=fp32,threads=2"
    assert "dtype" not in " ".join(first.arguments()[4:])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("contxt", "did you mean context"),
        ("batchsize", "did you mean batch"),
        ("touch.dtype", "did you mean torch"),
        ("enginee", "did you mean engine"),
        ("zzz", "fields: model, context"),
    ],
)
def test_an_unknown_field_is_refused_with_a_suggestion(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make(["torch"], {name: "1"})


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "k", "1m", [], [1.5], {}, "9999999999"])
def test_a_bad_value_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="batch"):
        values_of("batch", value)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="empty grid"):
        make([], {"context": "1"})
    with pytest.raises(UsageError, match="at most"):
        make(["torch"], {"context": list(range(1, 1001)), "batch": list(range(1, 1001))}).points()


def test_a_grid_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    grid = make(
        ["torch:device=cpu", 'x:y="q\\'], {"context": "1,2k", "x.o": "a b", "model": "m"}, 3
    )
    file = tmp_path / "grid.toml"
    file.write_text(grid.to_toml(), encoding="utf-8")
    assert read_toml(file) == grid
    assert read_toml(file).grid_id == grid.grid_id


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("engine = 3", "engine must be a list"),
        ("context = [1]", "empty grid"),
        ("engine = 'torch'\nfields = 3", "must be a table"),
        ("engine = 'torch'\nbach = [1]", "did you mean batch"),
        ("engine = 'torch'\nrepeat = 0", "repeat 0"),
        ("engine = [", "grid file"),
    ],
)
def test_a_bad_grid_file_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=why) as raised:
        read_toml(file)
    assert "\n" not in str(raised.value)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    )
)
def test_whatever_a_file_holds_is_a_grid_or_a_usage_error(content: object) -> None:
    data = content if isinstance(content, dict) else {"fields": content, "engine": ["torch"]}
    try:
        grid = Grid.from_dict(data)
    except UsageError:
        return
    assert Grid.from_dict(grid.to_dict()) == grid


def test_short_names_lose_nothing() -> None:
    assert [short("context", v) for v in ("1024", "1025", "131072")] == ["1k", "1025", "128k"]
    assert canonical("prompt_len") == "context"


def test_impossible_points_are_known_before_anything_runs() -> None:
    grid = make(["torch"], {"model": "tiny", "context": "64,1k,1m".replace("1m", "900k")})
    found = forecasts(grid.points(), Place(gpu_mib=None, host_mib=64_000))
    assert [bool(f.impossible) for f in found] == [False, False, True]
    assert "context is" in found[2].impossible
    assert found[0].need_mib and found[1].need_mib > found[0].need_mib
    small = forecasts(grid.points()[:1], Place(gpu_mib=None, host_mib=0.001))
    assert "needs" in small[0].impossible


def test_a_generator_of_one_sequence_cannot_batch() -> None:
    grid = make(["fake", "llamacpp"], {"model": "tiny", "batch": "1,2"})
    found = forecasts(grid.points(), None)
    assert [bool(f.impossible) for f in found] == [False, True]
    assert "drive=forward" in found[1].impossible


def test_an_engine_that_nobody_knows_has_no_forecast() -> None:
    found = forecasts(make(["fake"], {"context": "16"}).points(), Place(None, 1000.0))
    assert found[0].impossible == ""


def test_a_load_is_in_the_time_of_one_point_only() -> None:
    points = make(["torch"], {"model": "tiny", "context": "64,128", "seed": "1,2"}).points()
    one_by_one = forecasts(points, None)
    together = shared(one_by_one)
    loads_s = [a.seconds - b.seconds for a, b in zip(one_by_one, together, strict=True)]
    assert [round(s, 6) for s in loads_s[:2]] == [0, 0] and min(loads_s[2:]) > 8
    assert all(item.seconds >= 60 for item in together)  # no rounds: the time of a point


@pytest.mark.parametrize(
    ("name", "value"), [("max-time", "soon"), ("max-time", "0s"), ("precision", "1")]
)
def test_a_goal_that_no_run_takes_is_refused_before_anything_runs(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"field {name}: '{value}' is not such as"):
        make(["fake"], {name: value})
