"""`python -m krscale.distill`: the same as `krscale distill`."""

import sys

from krscale.cli.distill import main

if __name__ == "__main__":
    sys.exit(main())
