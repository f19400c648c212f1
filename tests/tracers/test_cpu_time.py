"""Who had the CPUs: counters of the kernel, of this machine and of trees laid out like others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rundata_factory import decode_round, engine, run_data

from llmprof.analysis.timing.cpu import CpuConditions, cpu_conditions, cpu_warnings
from llmprof.records import CpuUse, EngineInfo, Unavailable
from llmprof.tracers.cpu_time import between, read_cpu

S = 10**9


def tree(root: Path, stat: str, group: str = "", limit: str = "max 100000") -> Path:
    files = {
        "proc/stat": stat,
        "proc/self/cgroup": "0::/me\n",
        "proc/7/stat": "7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 30 20 5 5 0 0\n",
        "sys/fs/cgroup/me/cpu.max": limit,
        "sys/fs/cgroup/me/cpu.stat": group,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_counters_of_the_cpus_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    stat = "cpu 9 9 9 9\ncpu0 10 1 5 100 7 2 3 40 1 0\ncpu1 99 99 99 9 9 9 9 9 0 0\n"
    stat += "cpu2 1 0 0 100 0 0 0 0 0 0\nintr 5\n"
    group = "nr_periods 50\nnr_throttled 20\nthrottled_usec 3000\n"
    before = read_cpu([7], tree(tmp_path, stat, group, "50000 100000"))
    assert before is not None
    # 10 + 1 + 5 + 2 + 3 of cpu0 and 1 of cpu2; idle, iowait and steal are nobody's work
    assert (before.cpus, before.busy_ns, before.steal_ns) == (2, 220_000_000, 400_000_000)
    assert before.own_ns >= 600_000_000  # utime, stime and those of ended children
    assert before.quota == (50, 20, 3_000_000)
    later = "nr_periods 60\nnr_throttled 29\nthrottled_usec 9000\n"
    stat = stat.replace("cpu2 1", "cpu2 51")
    after = read_cpu([7], tree(tmp_path, stat, later, "50000 100000"))
    use = between(before, after)
    assert use is not None and use.busy_ns == 500_000_000 and use.steal_ns == 0
    assert (use.periods, use.throttled, use.throttled_ns) == (10, 9, 6_000_000)


def test_what_the_kernel_does_not_show_is_not_counted(tmp_path: Path) -> None:
    assert read_cpu([], tree(tmp_path, "")) is None
    assert between(None, read_cpu([os.getpid()])) is None


def test_this_machine_counts_a_child() -> None:
    before = read_cpu([])
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code + "\ninput()"], stdin=-1) as child:
        while (now := read_cpu([child.pid])) is not None and between(before, now).own_ns < 0.25 * S:
            assert child.poll() is None
            os.sched_yield()
        child.communicate(b"\n")
    assert now is not None and now.busy_ns > 0


def use(**values: int) -> CpuUse:
    usual = {"wall_ns": S, "cpus": 4, "busy_ns": S, "own_ns": S, "steal_ns": 0}
    return CpuUse(**(usual | values))


def found(uses: list[CpuUse | None], threads: int | None = 4) -> CpuConditions | Unavailable:
    torch = engine(0, "torch", info=EngineInfo(threads=threads))
    rounds = [decode_round(0, i, [5.0] * 4, cpu=u) for i, u in enumerate(uses)]
    return cpu_conditions(run_data([torch], rounds), torch)


@pytest.mark.parametrize(
    ("threads", "others", "warned"),
    [(4, 0.0, False), (4, 0.5, True), (2, 1.0, False), (2, 2.3, True), (None, 2.0, False),
     (None, 3.2, True)],
)  # fmt: skip
def test_others_matter_where_the_engine_wants_their_cpus(
    threads: int | None, others: float, warned: bool
) -> None:
    result = found([use(busy_ns=S + round(others * S))] * 2, threads)
    assert isinstance(result, CpuConditions) and result.other_cpus == pytest.approx(others)
    texts = [w.text for w in cpu_warnings("torch", result)]
    assert bool(texts) == warned
    assert all(f"{others:.1f} of 4 CPUs" in text for text in texts)


def test_steal_and_the_quota_are_said() -> None:
    uses: list[CpuUse | None] = [
        use(steal_ns=S // 5, periods=10, throttled=4, throttled_ns=S),
        None,
    ]
    texts = [w.text for w in cpu_warnings("torch", found(uses))]
    assert any("5% of the CPUs' time (steal)" in text for text in texts)
    assert any("stopped it in 4 of 10 periods (1.0 s" in text for text in texts)


def test_short_or_old_rounds_are_not_judged() -> None:
    for uses in ([None], [use(wall_ns=S // 2)]):
        result = found(list(uses))
        assert isinstance(result, Unavailable) and not cpu_warnings("torch", result)
