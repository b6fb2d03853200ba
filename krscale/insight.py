"""`python -m krscale.insight`: the same as `krscale insight`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["insight", *sys.argv[1:]]))
