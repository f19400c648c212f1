"""Examples at the end of each ``--help``, and in the man page."""

from __future__ import annotations

EXAMPLES = {
    "": """\
  llmprof                                                   choose engines and model in the TUI
  llmprof --engine torch --engine llamacpp                  two engines, SmolLM2 where installed
  llmprof --engine torch --engine torch:cuda_graph=1 --model llama2-7b
  llmprof --headless --engine torch --rounds 8 -o run.sqlite
  llmprof --json --from run.sqlite | python -m json.tool
  llmprof --engine mine@/opt/mine/bin/python:key=value      an engine's own interpreter""",
    "record": """\
  llmprof record -- python serve.py --port 8000
  llmprof record -o run.sqlite -- ./a.out""",
    "open": """\
  llmprof open run.sqlite
  llmprof open old.sqlite new.sqlite                        side by side
  llmprof open X.sqlite --step-range 'decode*'              an export of Nsight Systems""",
    "findings": """\
  llmprof findings run.sqlite
  llmprof findings run.sqlite --json                        4 kB for a program or an agent""",
    "export": """\
  llmprof export run.sqlite --to html
  llmprof export run.sqlite --to perfetto -o run.pftrace""",
    "compare": """\
  llmprof compare run.sqlite                                its engines with its first one
  llmprof compare old.sqlite:torch new.sqlite:torch
  llmprof compare old.sqlite new.sqlite --fail-on 'tok_s<98%,itl_p99_ms>1.1x'
  llmprof compare --baseline main new.sqlite --fail-on 'tok_s<98%' --junit gate.xml""",
    "baseline": """\
  llmprof baseline save main run.sqlite
  llmprof baseline list""",
    "sweep": """\
  llmprof sweep --engine torch --model smollm2 --context 128,1k,4k --batch 1,4 -o sweep
  llmprof sweep grid.toml --on gpus -o sweep                one worker a GPU
  llmprof sweep grid.toml --on ray --accelerator H100 -o sweep
  llmprof sweep report sweep --to html                      curves, fits, tables""",
    "model": """\
  llmprof model synth llama2-7b --engine exllamav2 -o model
  llmprof model prepare --engine mlc --from Llama-2-7b-hf --artifact-path dist""",
    "engines": """\
  llmprof engines
  llmprof engines --config bench.toml""",
    "doctor": """\
  llmprof doctor
  llmprof doctor --json | python -m json.tool""",
    "schema": """\
  llmprof schema > llmprof.schema.json""",
}


def epilog(command: str) -> str:
    """The examples of a command under a heading; empty where it has none."""
    return f"examples:\n{EXAMPLES[command]}\n" if command in EXAMPLES else ""
