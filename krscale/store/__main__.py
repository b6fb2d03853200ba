"""`python -m krscale.store`: the same as `krscale store`."""

import sys

from krscale.cli.store import main

if __name__ == "__main__":
    sys.exit(main())
