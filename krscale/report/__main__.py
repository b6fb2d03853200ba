"""`python -m krscale.report`: the same as `krscale report`."""

import sys

from krscale.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
