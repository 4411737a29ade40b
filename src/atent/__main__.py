"""`python -m atent` is `atent`."""

import sys

from atent.cli import main

sys.exit(main())
