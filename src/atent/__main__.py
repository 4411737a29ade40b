"""`python -m atent` is `atent`."""

import os
import sys

# Python put the current directory first, where a file may have the name of a module of the library; the names that the
# user gives are looked for there nevertheless.
if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) != os.getcwd():
    sys.path[:1] = [] if sys.path[:1] in ([""], [os.getcwd()]) else sys.path[:1]

from atent.cli import main

sys.exit(main())
