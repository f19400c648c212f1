"""Engines: what decodes. One file an engine, heavy imports inside ``load``."""
