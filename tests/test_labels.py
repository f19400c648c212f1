"""Labels cut to a width, where different ones stay different; lines of a program's output."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llmprof.plaintext import as_shown, shortened, told_apart
from llmprof.tui.drawing.cells import fit_label


def test_the_end_tells_ranks_apart() -> None:
    assert told_apart(["VLLM::Worker_TP0", "VLLM::Worker_TP1"], 11) == [
        "VLLM…er_TP0",
        "VLLM…er_TP1",
    ]
    # The difference is in the middle, where the ellipsis would be.
    long = [f"VLLM::Worker_TP{n}_with_a_long_tail" for n in range(3)]
    assert len(set(told_apart(long, 11))) == 3
    assert told_apart(["torch", "mlc"], 11) == ["torch", "mlc"]
    assert fit_label("VLLM::Worker_TP0", 11) == "VLLM…er_TP0"


labels = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@given(st.lists(labels, max_size=6), st.integers(8, 30))
def test_never_longer_and_never_the_same(texts: list[str], limit: int) -> None:
    found = told_apart(texts, limit)
    assert all(len(text) <= limit for text in found)
    printed = {shortened(text, 10_000) for text in texts}
    assert len(set(found)) >= len(printed)


@given(labels, st.integers(0, 30))
def test_a_label_fills_its_cells_exactly(text: str, width: int) -> None:
    assert cell_len(fit_label(text.replace("\n", ""), width)) == width


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[0;36m(EngineCore pid=7)\x1b[0;0m INFO ready", "(EngineCore pid=7) INFO ready"),
        ("Loading:   0%|    |\rLoading:  50%|##  |\rLoading: 100%|####|", "Loading: 100%|####|"),
        ("Loading: 50%\r", "Loading: 50%"),
        ("\x1b]0;a title\x07text\x1b]8;;http://x\x1b\\link", "textlink"),
        ("\x1b[2J\x1b[H\x1b(Bplain", "plain"),
        ("\x1b", "\x1b"),
        ("", ""),
    ],
)
def test_a_line_of_a_programs_output_as_it_stands_on_a_terminal(line: str, shown: str) -> None:
    assert as_shown(line) == shown


@given(st.text(alphabet="\x1b[]P;0mJ\\\x07\r ab"))
def test_what_is_shown_of_any_line_is_a_part_of_it(line: str) -> None:
    shown = as_shown(line)
    rest = iter(line)
    assert all(letter in rest for letter in shown) and "\r" not in shown
