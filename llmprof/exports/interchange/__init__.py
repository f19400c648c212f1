"""Results in the formats of other benchmarks; called by ``exports.formats`` only."""
