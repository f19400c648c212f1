"""Steps, statistics, ratios and conditions of the timing pass; for the other rooms of analysis,
and exports.
"""
