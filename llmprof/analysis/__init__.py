"""Pure functions from what a run file holds to what a person wants to know."""
