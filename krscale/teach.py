"""`python -m krscale.teach`: the same as `krscale teach`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["teach", *sys.argv[1:]]))
