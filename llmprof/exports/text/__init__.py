"""Tables: terminal, Markdown, CSV."""
