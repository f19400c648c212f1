"""Lanes, axes and levels of detail that the timeline draws from; stands on device and host."""
