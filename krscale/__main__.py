"""`python -m krscale COMMAND`: the same as `krscale COMMAND`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
