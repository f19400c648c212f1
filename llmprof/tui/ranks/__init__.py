"""The page of ranks: who waits for whom, step by step; called by the frame."""
