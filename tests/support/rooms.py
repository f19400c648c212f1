"""Importing this puts the rooms of tests/support on the path of a script, as pyproject.toml does it
for pytest."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / room) for room in ("", "made_traces", "stubs", "truths", "weights")]
