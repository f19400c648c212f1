"""Ranked statements about what would make a token cheaper, with evidence.

For front ends and exports; each rule looks at one engine and says nothing where it cannot tell.
"""
