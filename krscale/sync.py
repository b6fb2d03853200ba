"""`python -m krscale.sync`: the same as `krscale sync`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["sync", *sys.argv[1:]]))
