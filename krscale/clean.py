"""`python -m krscale.clean`: the same as `krscale clean`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["clean", *sys.argv[1:]]))
