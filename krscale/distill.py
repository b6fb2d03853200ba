"""`python -m krscale.distill`: the same as `krscale distill`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
