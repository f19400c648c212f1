"""The parent: starts workers, interleaves their rounds, samples, writes the run file."""
