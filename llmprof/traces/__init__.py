"""Readers of files that other profilers wrote: rows out, nothing analysed.

``opened.readable`` turns whatever a user names into a file that ``runfile.reader`` opens; the
command line calls it before anything else.
"""
