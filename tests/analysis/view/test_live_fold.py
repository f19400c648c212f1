"""Frames while a session runs, and of a run that is over."""

from __future__ import annotations

from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from rundata_factory import (
    H100,
    MS,
    decode_round,
    engine,
    engine_info,
    gpu_sample,
    run_data,
    run_info,
    two_engines,
)

from llmprof.analysis.view.frames.frame import HISTORY
from llmprof.analysis.view.frames.live import LiveFold, RunDataSource
from llmprof.analysis.view.frames.snapshot import NOT_YET, Snapshot, SnapshotSource
from llmprof.records import Unavailable
from llmprof.session.events import SessionObserver


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def started(labels: tuple[str, ...] = ("torch", "llamacpp")) -> LiveFold:
    fold = LiveFold(clock=Clock())
    info = run_info(state="running")
    engines = [engine(i, label, state="ready") for i, label in enumerate(labels)]
    fold.run_started(info, engines, "/tmp/run.sqlite")
    return fold


def test_the_fold_is_an_observer_and_a_source() -> None:
    fold = LiveFold()
    observer: SessionObserver = fold
    sources: list[SnapshotSource] = [fold, RunDataSource(two_engines())]
    assert observer is sources[0]


def test_a_snapshot_before_the_run_is_empty() -> None:
    fold = LiveFold()
    fold.log("starting\nworkers")
    assert fold.snapshot().engines == ()
    assert fold.snapshot().log == ("starting", "workers")


def test_before_the_first_round_nothing_is_measured() -> None:
    fold = started()
    fold.progress(0, "loading weights", 0.4)
    torch, llamacpp = fold.snapshot().engines
    assert (torch.phase, torch.progress) == ("loading weights", 0.4)
    assert (llamacpp.phase, llamacpp.progress) == ("waiting", None)
    for value in (torch.tok_s, torch.itl_p99_ms, torch.bandwidth_gb_s, torch.slowdown):
        assert value == NOT_YET
    assert fold.snapshot().pairs == ()


def test_the_running_round_is_on_show() -> None:
    fold = started()
    fold.round_started(0, "timing", 2, 8)
    fold.round_stamps(0, array("q", [0, 10 * MS, 30 * MS]))
    torch = fold.snapshot().engines[0]
    assert torch.phase == "timing 3/8"
    assert torch.progress == pytest.approx((2 + 2 / 4) / 8)
    assert torch.step_ms == (10, 20)
    assert torch.round_label == "round 3/8"
    assert torch.steps_done == 2
    assert torch.itl_p50_ms == 15
    assert torch.tok_s == NOT_YET


def test_a_finished_round_becomes_a_number_and_stays_on_show() -> None:
    fold = started()
    fold.round_started(0, "timing", 0, 8)
    fold.round_finished(decode_round(0, 0))
    fold.round_started(1, "timing", 0, 8)
    torch, llamacpp = fold.snapshot().engines
    assert (torch.phase, torch.progress) == ("waiting", 1 / 8)
    assert torch.tok_s == pytest.approx(100)
    assert isinstance(torch.tok_s_low, Unavailable)
    assert torch.step_ms == (10, 10, 10, 10)
    assert torch.round_label == "round 1/8"
    assert torch.slowdown == NOT_YET
    assert llamacpp.tok_s == NOT_YET


def test_steps_of_the_traced_pass_are_no_timing_steps() -> None:
    fold = started()
    fold.round_finished(decode_round(0, 0))
    fold.round_started(0, "traced", 0, 1)
    fold.round_stamps(0, array("q", [0, 50 * MS]))
    torch = fold.snapshot().engines[0]
    assert torch.phase == "traced"
    assert torch.step_ms == (50,)
    assert torch.round_label == "traced round 1/1"
    assert (torch.steps_done, torch.itl_max_ms) == (4, 10)


def test_an_engine_that_runs_free_shows_no_steps() -> None:
    fold = started(("mlc",))
    free = engine(0, "mlc", state="running", info=engine_info(synchronous=False))
    fold.engine_changed(free)
    fold.round_started(0, "timing", 0, 8)
    fold.round_stamps(0, array("q", [0, 1, 2, 3]))
    view = fold.snapshot().engines[0]
    assert view.step_ms == ()
    assert view.steps_done == 3
    assert view.itl_p50_ms == NOT_YET


def test_a_failure_is_shown_on_one_safe_line() -> None:
    fold = started()
    fold.round_started(0, "timing", 0, 8)
    failed = engine(0, "torch", state="failed", failure="out of\n\x1b[2Jmemory", text="a\x1bb")
    fold.engine_changed(failed)
    torch = fold.snapshot().engines[0]
    assert (torch.phase, torch.state) == ("failed", "failed")
    assert torch.failure == "out of \\x1b[2Jmemory"
    assert torch.text == "a\\x1bb"
    assert isinstance(torch.tok_s, Unavailable)
    assert "failed" in torch.tok_s.reason


def test_the_session_may_change_its_records_afterwards() -> None:
    fold = started()
    record = engine(0, "torch", state="ready")
    fold.engine_changed(record)
    before = fold.snapshot()
    record.state, record.failure = "failed", "later"
    assert fold.snapshot() == before


def replayed(fold: LiveFold) -> Snapshot:
    data = two_engines()
    for record in data.rounds:
        fold.round_started(record.engine_id, record.pass_name, record.index, 8)
        fold.round_finished(record)
    for record_ in data.engines:
        fold.engine_changed(record_)
    fold.run_finished("finished", "")
    return fold.snapshot()


def test_live_and_replay_end_in_the_same_frame() -> None:
    live = replayed(started())
    replay = RunDataSource(two_engines()).snapshot()
    hidden = {"elapsed_s": 0.0, "gpus": (), "file": "", "log": ()}
    assert replace(live, **hidden) == replace(replay, **hidden)
    assert live.pairs[0].verdict.startswith("llamacpp is 3.00× as fast as torch (95 %: ")
    assert {e.phase for e in live.engines} == {"done"}


def test_elapsed_time_stands_still_after_the_end() -> None:
    clock = Clock()
    fold = LiveFold(clock=clock)
    fold.run_started(run_info(state="running", t0_ns=1_000_000_000), [], "")
    clock.now_ns = 3_000_000_000
    assert fold.snapshot().elapsed_s == 2
    fold.run_finished("interrupted", "Ctrl-C")
    clock.now_ns = 9_000_000_000
    assert fold.snapshot().elapsed_s == 2
    assert (fold.snapshot().state, fold.snapshot().message) == ("interrupted", "Ctrl-C")


def test_stop_reaches_the_session_until_the_run_is_over() -> None:
    asked: list[str] = []
    fold = LiveFold(on_stop=lambda: asked.append("stop"))
    assert fold.live
    fold.stop()
    fold.run_finished("interrupted", "")
    fold.stop()
    assert asked == ["stop"]
    assert not fold.live


def test_the_gpu_panel() -> None:
    fold = started()
    fold.gpu_devices([], "no NVIDIA driver")
    assert fold.snapshot().gpus[0].unavailable == "no NVIDIA driver"
    fold.gpu_devices([H100], "")
    fold.gpu_samples([gpu_sample(i, throttle_mask=0x4 | 0x1) for i in range(HISTORY + 9)])
    fold.gpu_samples([gpu_sample(i, device=1) for i in range(5)])
    (gpu,) = fold.snapshot().gpus
    assert gpu.device == H100
    assert len(gpu.history) == HISTORY
    assert gpu.latest == gpu.history[-1]
    assert gpu.history[0].timestamp_ns < gpu.history[-1].timestamp_ns
    assert gpu.throttle == ("power cap",)


def test_warnings_and_agreement_reach_the_frame() -> None:
    data = two_engines()
    for record in data.engines:
        assert record.info is not None
        record.info.weights_id = "w"
    frame = RunDataSource(data).snapshot()
    assert (frame.pairs[0].common_prefix, frame.pairs[0].agreement) == (5, 1.0)
    fold = started()
    fold.warned("torch", "unstable\x1b")
    assert fold.snapshot().warnings == ("torch: unstable\\x1b",)


def test_a_recording_that_was_cut_off_is_no_running_one() -> None:
    data = run_data([engine(0, "torch", state="running")], [decode_round(0, 0)])
    data.info = run_info(state="running")
    frame = RunDataSource(data).snapshot()
    assert frame.state == "interrupted"
    assert frame.message == "the recording was cut off"
    assert frame.engines[0].phase == "stopped"
    assert frame.elapsed_s == pytest.approx(0.06)


def test_snapshots_while_another_thread_records() -> None:
    fold = started()

    def record() -> None:
        for index in range(200):
            fold.round_started(index % 2, "timing", index // 2, 100)
            fold.round_stamps(index % 2, array("q", [0, MS]))
            fold.gpu_samples([gpu_sample(index)])
            if index % 20 == 0:
                fold.round_finished(decode_round(index % 2, index // 2))

    with ThreadPoolExecutor(1) as pool:
        recording = pool.submit(record)
        while not recording.done():
            fold.snapshot()
        recording.result()
    assert fold.snapshot().engines[0].steps_done > 0


def test_a_run_that_time_ends_shows_the_interval_closing_and_the_time_left() -> None:
    fold = started()
    fold.goal(None, 0.01, 40.0)
    fold.round_started(0, "timing", 0, 0)
    assert fold.snapshot().goal == "40 s left · no interval yet (goal ±1 %)"
    fold.goal(0.052, 0.01, 9.2)
    fold.round_started(0, "timing", 7, 0)
    shot = fold.snapshot()
    assert shot.goal == "10 s left · ±5.2 % (goal ±1 %)"
    share = shot.engines[0].progress
    assert share == pytest.approx(1 - 9.2 / 40)
    fold.run_finished("finished", "")
    assert fold.snapshot().goal == ""
