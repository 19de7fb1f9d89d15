"""`python -m gradcore` is the command line."""

import sys

from gradcore.cli import main

sys.exit(main())
