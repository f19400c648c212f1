"""Pure functions over reader rows. Rooms import one way: timing, device → host, bandwidth →
timeline → view.
"""
