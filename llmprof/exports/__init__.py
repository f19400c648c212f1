"""Output formats, a folder a kind; ``formats`` is their registry. For cli and tui."""
