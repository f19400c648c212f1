"""What matters about a run, in a few lines; the page that every finished run lands on."""
