"""Which parts of a window are sampled, and that there is a bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmprof.recording.sampled.stretches import Spread, Stretches


@given(
    opens=st.lists(st.tuples(st.floats(1, 400), st.floats(0, 900)), max_size=6),
    spread=st.builds(
        Spread,
        first_s=st.floats(1, 100), each_s=st.floats(1, 30), every_s=st.floats(30, 90),
        most_s=st.floats(1, 500),
    ),
)  # fmt: skip
def test_no_more_than_the_bound_and_only_in_the_window(
    opens: list[tuple[float, float]], spread: Spread
) -> None:
    stretches, sampled, now = Stretches(spread), 0.0, 0.0
    for closed_s, open_s in opens:
        for is_open, length in ((False, closed_s), (True, open_s)):
            for i in range(int(length)):
                wanted = stretches.wanted(is_open, now)
                assert is_open or not wanted
                if is_open and sampled < spread.most_s - 1:
                    assert wanted or i + 1 > spread.first_s  # the begin of each window
                sampled += wanted
                now += 1.0
    assert sampled <= spread.most_s + 1 and (not stretches.thinned or now > 0)


def test_the_first_minute_then_a_part_of_each() -> None:
    stretches = Stretches(Spread(60, 20, 60, 600))
    wanted = [stretches.wanted(100 <= t < 2000, float(t)) for t in range(2100)]
    assert not any(wanted[:100]) and all(wanted[100:160])
    assert [sum(wanted[160 + 60 * n : 220 + 60 * n]) for n in range(4)] == [20] * 4
    assert sum(wanted) == 600 and stretches.thinned
