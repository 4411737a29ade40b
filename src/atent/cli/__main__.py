"""`python -m atent.cli` is `atent`."""

import sys

from atent.cli import main

sys.exit(main())
