"""A run as its readers see it: report, traced pass, live fold, snapshot; for tui, exports and
cli.
"""
