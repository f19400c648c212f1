"""Everything that writes run files. For sessions, recordings and readers of other traces."""
