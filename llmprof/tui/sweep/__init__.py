"""The page of a sweep: curves, categories along them, a heat map, points; and its app."""
