"""`python -m krscale.pick`: the same as `krscale pick`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["pick", *sys.argv[1:]]))
