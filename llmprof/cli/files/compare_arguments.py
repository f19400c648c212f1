"""Options of ``llmprof compare`` that make it a gate."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fail-on",
        metavar="EXPR",
        action="append",
        default=[],
        help="exit 4 if B / A is beyond, 5 if that cannot be told: tok_s<98%%, itl_p99_ms>1.05x,"
        " kernels>100%%, category:attention>105%%; several apart by commas, or repeated; of tok_s"
        " ttft_ms tpot_ms itl_p95_ms itl_p99_ms busy_ms idle_ms kernels launches j_per_token"
        " dram_gb_s category:NAME",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="compare the kept run of that name and of the same conditions (A) with this run (B)",
    )
    parser.add_argument(
        "--across",
        action="store_true",
        help="with --baseline: also where GPU, driver, versions, model or workload differ",
    )
    parser.add_argument("--junit", metavar="FILE", help="write the gates as a JUnit file")
    parser.add_argument(
        "--summary-md",
        metavar="FILE",
        nargs="?",
        const="",
        help="append verdicts and gates as Markdown ($GITHUB_STEP_SUMMARY where no file is named)",
    )
