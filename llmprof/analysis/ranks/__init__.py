"""Processes and GPUs that compute one step together: their clocks, their collectives, and which of
them the others wait for. Used by ``analysis.view`` and ``analysis.timeline``."""
