"""Kernels, steps and host ranges as tracks, for timeline viewers."""
