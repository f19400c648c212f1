"""Files of any kind: what they are, and what to do with those that cannot be opened."""

from __future__ import annotations

import gzip
from pathlib import Path

import kineto_factory as kineto
import pytest

from llmprof.errors import RunFileError
from llmprof.traces.opened import readable


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "t.pftrace",
            b"\x0a\x05hello\x0a\x05world",
            "a Perfetto trace: open it in ui.perfetto.dev",
        ),
        ("t", b"\x0a\x05hello\x0a\x05world", "a Perfetto trace"),
        ("t.zip", b"PK\x03\x04aaaa", "a ZIP archive: unpack it"),
        ("t.json.zst", b"\x28\xb5\x2f\xfdaaaa", "packed with zstd: unpack it"),
        ("t.json.gz", b"\x1f\x8b\x08\x00", "packed with gzip, but not whole"),
        ("t.json.gz", gzip.compress(b"hello", mtime=0), "no SQLite file and no JSON"),
        ("m.gguf", b"GGUF\x03\x00\x00\x00", "a GGUF model: give it to an engine"),
        ("t.txt", b"hello", "traces of torch.profiler and rocprofv3"),
        ("t.ncu-rep", b"\x00\x01", "Nsight's own .ncu-rep file"),
    ],
)
def test_what_it_is_and_what_to_do(
    llmprof, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RunFileError) as why:
        readable(path)
    assert words in str(why.value)
    done = llmprof("--from", str(path))
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_every_command_takes_a_trace(llmprof, tmp_path: Path) -> None:
    a = kineto.write(tmp_path / "a.json.gz", kineto.document(kineto.steps()))
    b = kineto.write(tmp_path / "b.json", kineto.document(kineto.steps(8, graph=True)))
    report = llmprof("--from", str(a))
    assert report.returncode == 0, report.stderr
    assert "my_own_thing" in report.stdout
    document = llmprof("--from", str(a), "--json")
    assert '"source": "torch.profiler"' in document.stdout
    assert f'"file": "{a}"' in document.stdout
    compared = llmprof("compare", f"{a}:python3", str(b))
    assert compared.returncode == 0, compared.stderr
    assert "GEMM/GEMV" in compared.stdout
    for form in ("chrome", "csv", "html", "nsys"):
        done = llmprof("export", str(a), "--to", form)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.chrome.json").is_file()
    assert "a.json.gz" in (tmp_path / "a.html").read_text()
    # What was exported for nsys opens again, as what it is.
    again = llmprof("--from", str(tmp_path / "a.nsys.sqlite"), "--json")
    assert '"source": "torch.profiler"' in again.stdout


def test_a_cache_that_cannot_be_written_is_no_obstacle(llmprof, tmp_path: Path) -> None:
    a = kineto.write(tmp_path / "a.json", kineto.document(kineto.steps()))
    done = llmprof("--from", str(a), env={"XDG_CACHE_HOME": "/proc/nowhere"})
    assert done.returncode == 0, done.stderr
    assert "my_own_thing" in done.stdout
