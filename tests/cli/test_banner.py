"""What a login shows."""

from __future__ import annotations

from pathlib import Path

from llmprof.cli.machine import banner
from llmprof.doctor.checks import Check

CHECKS = [
    Check("gpu", "ok", "0: NVIDIA H100; driver 580"),
    Check("engine torch", "ok", "torch 2.11"),
    Check("engine mlc", "missing", "no tvm"),
    Check("engine exllamav2", "degraded", "no safetensors"),
]


def test_gpu_and_the_engines_that_start_are_named(tmp_path: Path) -> None:
    shown = banner.render(CHECKS, tmp_path / "none")
    assert "NVIDIA H100" in shown
    assert "torch, exllamav2" in shown
    assert "mlc" not in shown
    assert "/none" not in shown


def test_nothing_found_is_said(tmp_path: Path) -> None:
    shown = banner.render([], tmp_path)
    assert "not looked at" in shown
    assert "none; llmprof doctor" in shown
    assert "empty" in shown


def test_names_of_models_reach_the_terminal_as_text_on_short_lines(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J").mkdir()
    for number in range(9):
        (tmp_path / f"model-{number}-{'x' * 40}").mkdir()
    shown = banner.render(CHECKS, tmp_path)
    assert "\x1b" not in shown
    assert "\\x1b" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_doctor_prints_it(llmprof) -> None:
    done = llmprof("doctor", "--banner")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llmprof ")
    assert "engines" in done.stdout
    assert llmprof("doctor", "--banner", "--json").returncode == 2
