"""Spools of the recorded processes: read while they grow, frames in, rows out. For recording."""
