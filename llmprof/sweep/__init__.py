"""Sweeps: a grid of points, each a run of ``llmprof``; their store, executors, curves and reports.
``cli`` and ``tui`` call it; a point is started as the command line, in a process of its own."""
