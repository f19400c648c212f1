"""Rows of the traced pass, as numpy columns, read in stretches."""
