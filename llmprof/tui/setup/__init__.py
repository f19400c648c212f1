"""What a start without arguments shows: model and engines to choose."""
