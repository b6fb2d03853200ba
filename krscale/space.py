"""`python -m krscale.space`: the same as `krscale space`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["space", *sys.argv[1:]]))
