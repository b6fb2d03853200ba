"""`python -m krscale.tune`: the same as `krscale tune`."""

import sys

from krscale.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
