"""`python -m krscale.data`: the same as `krscale data`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
