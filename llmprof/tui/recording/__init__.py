"""The live view of ``llmprof record``: counters, lanes, GPUs, and the program's own output."""
