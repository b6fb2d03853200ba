"""`python -m krscale.taps`: the same as `krscale taps`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["taps", *sys.argv[1:]]))
