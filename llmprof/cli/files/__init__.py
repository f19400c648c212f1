"""Commands about files that are there: open, compare and its gates, export. For the parser."""
