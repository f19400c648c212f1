"""Engines: what decodes. One folder a family, heavy imports inside ``load``."""
