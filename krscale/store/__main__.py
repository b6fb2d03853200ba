"""`python -m krscale.store`: the same as `krscale store`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["store", *sys.argv[1:]]))
