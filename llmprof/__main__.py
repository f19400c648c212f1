"""``python -m llmprof``."""

import sys

from llmprof.cli import main

sys.exit(main())
