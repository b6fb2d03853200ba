"""`python -m krscale.report`: the same as `krscale report`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
