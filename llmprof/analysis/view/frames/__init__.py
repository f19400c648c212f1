"""What one frame of the TUI shows, live, replayed, of one run or of several. For ``tui``."""
