"""Arguments of ``llmprof sweep`` and its report."""

from __future__ import annotations

import argparse

FORMATS = ("html", "png", "svg", "csv", "md")
LISTS = (
    ("--context", "context", "128,1k,8k", "KV positions before decoding (seeded ids)"),
    ("--batch", "batch", "1,2,4", "sequences at once"),
    ("--decode-len", "decode-len", "N,…", "decode steps a round (64)"),
    ("--rounds", "rounds", "R,…", "timing rounds an engine"),
    ("--traced-steps", "traced-steps", "N,…", "steps of the traced pass; 0: none"),
    ("--trace", "trace", "LEVEL,…", "what the traced pass records"),
    ("--bandwidth", "bandwidth", "LEVEL,…", "DRAM counters: kernels, steps, off"),
    ("--seed", "seed", "S,…", "prompt ids, order, weights"),
)


def sweep_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``llmprof sweep``."""
    parser.add_argument("grid", nargs="?", metavar="GRID.toml", help="the grid as a file")
    what = parser.add_argument_group("the grid: lists, every value with every other")
    what.add_argument(
        "--engine", action="append", metavar="NAME[@PYTHON][:key=value,…]",
        help="an engine; repeat: the engines of a point are interleaved, round by round",
    )  # fmt: skip
    what.add_argument("--model", action="append", help="a model; repeat for several")
    for option, _, shown, text in LISTS:
        what.add_argument(option, action="append", metavar=shown, help=text)
    what.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=V,…",
        help="any other field, or an engine's option: torch.dtype=fp16,bf16",
    )  # fmt: skip
    what.add_argument("--repeat", type=int, metavar="N", help="run the whole grid N times (1)")
    how = parser.add_argument_group("how to run it")
    how.add_argument("-o", "--output", metavar="DIR", help="the sweep's folder (new, or its own)")
    how.add_argument(
        "--on", default="local", metavar="WHERE",
        help="local; gpus: one worker a GPU of this host; ray, or ray://HOST:PORT",
    )  # fmt: skip
    how.add_argument("--accelerator", metavar="TYPE", help="only Ray nodes with it, such as H100")
    how.add_argument("--runs-at", metavar="PATH", help="nodes keep run files in this shared folder")
    how.add_argument(
        "--loads", choices=("shared", "fresh"), default="shared",
        help="fresh: every point loads its engines in processes of its own",
    )  # fmt: skip
    how.add_argument("--retry", choices=("failed",), help="run failed points again")
    how.add_argument("--dry-run", action="store_true", help="points, memory, time; nothing is run")
    how.add_argument("--save-grid", metavar="GRID.toml", help="write the grid as a file")


def report_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``llmprof sweep report``."""
    parser.add_argument("folder", metavar="DIR", help="the sweep's folder")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format")
    parser.add_argument("-o", "--output", metavar="OUT", help="the new file (DIR/report.FORMAT)")
    parser.add_argument("--over", metavar="FIELD", help="the axis of the curves (the first one)")
