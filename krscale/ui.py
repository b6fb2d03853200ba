"""`python -m krscale.ui`: the same as `krscale ui`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["ui", *sys.argv[1:]]))
