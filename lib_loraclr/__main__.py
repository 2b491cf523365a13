"""`python -m lib_loraclr`."""

import sys

from .doors.cli import main

if __name__ == "__main__":
    sys.exit(main())
