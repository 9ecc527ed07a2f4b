"""`python -m stprune`: the `stprune` command."""

import sys

from stprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
