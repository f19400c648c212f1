"""The page of measured DRAM bandwidth by kernel; called by the frame."""
