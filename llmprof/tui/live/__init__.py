"""Steps and summary: cards, bars, GPU panel."""
