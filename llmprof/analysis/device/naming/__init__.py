"""What a kernel's name says: readable, short, of which category. For every room of the analysis."""
