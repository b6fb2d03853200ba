"""`python -m krscale.sync`: the same as `krscale sync`."""

import sys

from krscale.cli.sync import main

if __name__ == "__main__":
    sys.exit(main())
