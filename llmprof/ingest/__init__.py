"""From tracers' records to rows of the run file: what session and recording both write."""
