"""`python -m krscale.insight`: the same as `krscale insight`."""

import sys

from krscale.cli.insight import main

if __name__ == "__main__":
    sys.exit(main())
