"""`python -m krscale.verify`: the same as `krscale verify`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
