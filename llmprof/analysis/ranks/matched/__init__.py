"""Who the ranks are, and which collective of one is which of the others. For ``ranks``."""
