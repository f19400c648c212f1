"""Which stretches of a trace are its steps, and of what kind each is: from the ranges that an
engine wrote, or from the device's own work. Called by ``analysis.view.opening`` only.
"""
