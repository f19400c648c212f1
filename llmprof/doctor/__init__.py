"""What this machine can do: checks, and the probe that runs under an engine's interpreter; for
cli.
"""
