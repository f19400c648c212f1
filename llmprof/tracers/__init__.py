"""Tracers: what records. Each has a probe and says what it costs."""
