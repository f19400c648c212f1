"""llmprof: where does the time of every generated token go?

Importing this package costs nothing: every heavy import happens late, where it is used.
"""

__version__ = "0.2.0"
