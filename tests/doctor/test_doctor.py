"""``llmprof doctor``: every finding says what to do, whatever the machine looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvml_stub
import pytest

from llmprof.distribution import how_to_install
from llmprof.doctor import checks as doctor
from llmprof.doctor import probe as doctor_probe
from llmprof.doctor.checks import Check


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    checks = doctor.examine({"torch": sys.executable, "llamacpp": sys.executable})
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    expected = {"python", "engine torch", "engine llamacpp", "default model", "gpu", "gpm"}
    expected |= {"clock locking", "cupti", "ptrace", "py-spy", "nsys", "terminal", "data folder"}
    assert expected <= set(names)
    assert all(check.detail and (check.fix or check.status == "ok") for check in checks)
    document = json.loads(json.dumps(doctor.to_json(checks)))
    assert sum(document["counts"].values()) == len(document["checks"]) == len(checks)
    text = doctor.render(checks)
    assert all(check.detail in text and check.fix in text for check in checks)


def test_engines_are_looked_for_without_being_imported() -> None:
    code = (
        "import sys; from llmprof.doctor import checks as doctor;"
        "doctor.examine({'torch': sys.executable, 'llamacpp': sys.executable});"
        "print({'torch', 'llama_cpp', 'gguf', 'textual', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_another_interpreter_is_asked_about_its_own_packages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "e"], check=True)
    python = str(tmp_path / "e" / "bin" / "python")
    found = by_name(doctor.examine({"torch": python, "nobody": python}))
    torch = found["engine torch"]
    assert torch.status == "missing"
    assert f"torch is not in Python {sys.version.split()[0]} at {python}" in torch.detail
    assert "pip install torch safetensors gguf" in torch.fix
    assert "no engine of that name" in found["engine nobody"].detail


def test_a_third_party_engine_counts_with_its_own_module(clean_env: dict[str, str]) -> None:
    code = (
        "import sys; from llmprof.doctor import checks as doctor;"
        "print(doctor.render(doctor.examine({'fake': sys.executable})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_env, capture_output=True, text=True
    )
    assert "ok        engine fake" in done.stdout, done.stderr
    assert "llmprof_fakes 0.1" in done.stdout


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("exit 3", "exited with code 3"),
        ("printf 'no \\033[31mmodule\\n' >&2; exit 1", "exited with code 1: no \\x1b[31mmodule"),
        ("echo hello", "exited with code 0: hello"),
        ("echo '{}'", "exited with code 0: {}"),
        ("exec sleep 60", "no answer within"),
    ],
)
def test_a_broken_interpreter_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, expected: str
) -> None:
    if "sleep" in body:
        monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.5)
    checks = doctor.examine({"torch": script(tmp_path / "python", body)})
    engine = by_name(checks)["engine torch"]
    assert engine.status == "missing"
    assert expected in engine.detail
    assert "[engines.torch]" in engine.fix
    assert by_name(checks)["cupti"].status == "missing"


def test_what_engine_mlc_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(there: tuple[str, ...]) -> doctor.Check:
        monkeypatch.setattr(
            doctor_probe, "version_of", lambda module, _: "1.0" if module in there else None
        )
        return by_name(doctor.examine({"mlc": sys.executable}))["engine mlc"]

    assert found(("tvm", "mlc_llm")).status == "ok"
    without = found(("tvm",))
    assert without.status == "degraded" and "drive=vm" in without.detail
    assert "mlc.ai/wheels" in without.fix  # the package mlc-llm of PyPI is empty
    nothing = found(())
    assert nothing.status == "missing" and nothing.fix == how_to_install("mlc")
    elsewhere = doctor._engine("mlc", "/opt/x/bin/python", doctor_probe.look(["mlc"]))
    assert elsewhere.fix.endswith("pip install apache-tvm")


def test_no_interpreter_at_all(tmp_path: Path) -> None:
    engine = by_name(doctor.examine({"torch": str(tmp_path / "none")}))["engine torch"]
    assert "does not start: No such file or directory" in engine.detail


CAPABLE = "Name:\tx\nCapEff:\t0000000000080000\n"
INCAPABLE = "Name:\tx\nCapEff:\t0000000000200000\n"


@pytest.mark.parametrize(
    ("scope", "status", "docker", "expected", "word"),
    [
        ("0", INCAPABLE, False, "ok", "ptrace_scope is 0"),
        (None, INCAPABLE, False, "ok", "without Yama"),
        ("1", INCAPABLE, False, "ok", "ptrace_scope is 1"),
        ("2", INCAPABLE, False, "missing", "sysctl kernel.yama.ptrace_scope=1"),
        ("2", CAPABLE, False, "ok", "CAP_SYS_PTRACE"),
        ("3", CAPABLE, False, "missing", "reboot"),
        ("1", INCAPABLE, True, "ok", "ptrace_scope is 1"),
        ("2", INCAPABLE, True, "missing", "--cap-add SYS_PTRACE"),
        ("2", CAPABLE, True, "ok", "CAP_SYS_PTRACE"),
    ],
)
def test_ptrace(
    tmp_path: Path, scope: str | None, status: str, docker: bool, expected: str, word: str
) -> None:
    for name, text in {"self/status": status, "sys/kernel/yama/ptrace_scope": scope}.items():
        if text is not None:
            path = tmp_path / "proc" / name
            path.parent.mkdir(parents=True)
            path.write_text(text)
    if docker:
        (tmp_path / ".dockerenv").touch()
    check = doctor.ptrace(tmp_path)
    assert check.status == expected
    assert word in check.detail + check.fix


def test_data_folder_is_looked_at_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "a" / "b"))
    check = doctor.data_folder()
    assert str(tmp_path / "a" / "b") in check.detail
    assert check.status != "missing"
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").write_text("a file, not a folder")
    blocked = doctor.data_folder()
    assert blocked.status == "missing"
    assert "XDG_DATA_HOME" in blocked.fix


def test_tools_that_are_not_there_or_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert by_name(doctor.examine({}))["nsys"].status == "missing"
    script(tmp_path / "nsys", "echo broken; exit 1")
    script(tmp_path / "py-spy", "exit 0")
    found = by_name(doctor.examine({}))
    assert (found["nsys"].status, found["py-spy"].status) == ("degraded", "ok")
    (tmp_path / "nsys").write_bytes(b"not a program")
    assert "could not be looked at" in by_name(doctor.examine({}))["nsys"].detail


GpuChecks = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def gpu_checks(tmp_path: Path) -> GpuChecks:
    """The findings with an NVML that answers from a scenario."""
    library = nvml_stub.build(tmp_path)
    code = (
        "import json; from llmprof.doctor import checks as doctor;"
        "print(json.dumps(doctor.to_json(doctor.examine({}))))"
    )

    def run(scenario: str, **extra: str) -> dict[str, dict[str, Any]]:
        env = nvml_stub.environment(library, tmp_path, scenario, **extra)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    return run


def test_a_gpu_with_all_counters(gpu_checks: GpuChecks, tmp_path: Path) -> None:
    found = gpu_checks(nvml_stub.H100)
    assert found["gpu"]["status"] == found["gpm"]["status"] == "ok"
    assert "0: NVIDIA H100 80GB HBM3; driver 580.159.04" in found["gpu"]["detail"]
    assert "CUDA up to 13.0" in found["gpu"]["detail"]
    assert "nvidia-smi -lgc" in found["clock locking"]["detail"] + found["clock locking"]["fix"]
    calls = nvml_stub.calls_of(tmp_path)
    assert not [name for name in calls if "Set" in name]
    assert calls["nvmlInitWithFlags"] == calls["nvmlShutdown"]


def test_what_a_gpu_refuses_is_degraded_with_the_reason(gpu_checks: GpuChecks) -> None:
    refused = "gpu 0 fail nvmlDeviceGetMemoryBusWidth 3\ngpu 0 fail nvmlGpmSampleGet 4\n"
    found = gpu_checks(nvml_stub.H100 + refused)
    assert found["gpu"]["status"] == found["gpm"]["status"] == "degraded"
    assert "device.bus_width_bits" in found["gpu"]["detail"]
    assert "Insufficient Permissions" in found["gpm"]["detail"]


def test_hidden_and_lost_gpus(gpu_checks: GpuChecks) -> None:
    hidden = gpu_checks(nvml_stub.H100, CUDA_VISIBLE_DEVICES="")
    assert hidden["gpu"]["status"] == hidden["gpm"]["status"] == "missing"
    assert "hides every GPU" in hidden["gpu"]["detail"]
    lost = gpu_checks(nvml_stub.H100 + "gpu 0 lost_after -1\n")
    assert lost["gpu"]["status"] == lost["gpm"]["status"] == "degraded"


def test_the_command(llmprof: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = llmprof("doctor", "--json", env={"TERM": "dumb", "PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    assert {"python", "engine torch", "terminal"} <= {
        check["name"] for check in json.loads(done.stdout)["checks"]
    }
    assert "engine torch" in llmprof("doctor").stdout
