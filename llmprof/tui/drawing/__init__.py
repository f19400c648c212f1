"""Cells, colours, glyphs, numbers: what pages are drawn with; imports no page."""
