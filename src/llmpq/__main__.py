"""``python -m llmpq`` is the command ``llmpq``."""

import sys

from llmpq.cli import main

sys.exit(main())
