"""The parent: starts workers, takes turns, runs its own tracers, writes the run file."""
